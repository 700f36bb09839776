"""VTAB-1k's table: 19 tasks, the published order, and one task for every name."""

import pytest

# Section 4.2 of the specification: id, group, classes and test images, typed a second time.
PUBLISHED = """
cifar Natural 100 10000
caltech101 Natural 102 6084
dtd Natural 47 1880
oxford_flowers102 Natural 102 6149
oxford_iiit_pet Natural 37 3669
svhn Natural 10 26032
sun397 Natural 397 21750
patch_camelyon Specialized 2 32768
eurosat Specialized 10 5400
resisc45 Specialized 45 6300
diabetic_retinopathy Specialized 5 42670
clevr_count Structured 8 15000
clevr_dist Structured 6 15000
dmlab Structured 6 22735
kitti Structured 4 711
dsprites_loc Structured 16 73728
dsprites_ori Structured 16 73728
smallnorb_azi Structured 18 12150
smallnorb_ele Structured 9 12150
"""


def test_the_table_is_the_published_one():
    from vprompt.data.vtab import TASKS

    rows = [f"{t.id} {t.group} {t.classes} {t.test_images[0]}" for t in TASKS]
    assert rows == PUBLISHED.split("\n")[1:-1]
    assert [sum(t.group == g for t in TASKS) for g in ("Natural", "Specialized", "Structured")] == [
        7,
        4,
        8,
    ]
    assert sum(t.test_images[0] for t in TASKS) == pytest.approx(388_000, rel=0.01)


def test_caltech101_has_two_accepted_test_sizes():
    from vprompt.data.vtab import find

    assert find("caltech101").test_images == (6_084, 6_085)


def test_the_splits_are_cut_where_the_vpt_code_cuts_them():
    from vprompt.data.vtab import TASKS

    rules = {}
    for task in TASKS:
        rules.setdefault((str(task.val), str(task.test)), []).append(task.id)
    assert rules == {
        ("train[90%:]", "test"): ["cifar", "caltech101", "svhn"],
        ("validation", "test"): [
            "dtd",
            "oxford_flowers102",
            "sun397",
            "patch_camelyon",
            "diabetic_retinopathy",
            "dmlab",
            "kitti",
        ],
        ("train[80%:]", "test"): ["oxford_iiit_pet"],
        ("train[60%:]", "train[80%:]"): ["eurosat", "resisc45"],
        ("train[90%:]", "validation"): ["clevr_count", "clevr_dist"],
        ("train[80%:]", "train[90%:]"): ["dsprites_loc", "dsprites_ori"],
        ("test", "test[50%:]"): ["smallnorb_azi", "smallnorb_ele"],
    }


def test_every_name_means_one_task():
    from vprompt.data.vtab import TASKS, find

    names = [name for task in TASKS for name in task.names]
    assert len(set(names)) == len(names)
    for task in TASKS:
        assert all(find(name) is task for name in (*task.names, task.id.upper()))
    assert find("dtd10") is None and find("") is None and find("pets") is None


def test_names_are_sorted_as_in_the_tables():
    from vprompt.data.vtab import in_order

    assert in_order(["zebra", "kitti", "flowers102", "apple", "cifar100"]) == [
        "cifar100",
        "flowers102",
        "kitti",
        "zebra",
        "apple",
    ]


def test_a_folder_is_found_under_another_name_only_where_it_is_missing(tmp_path):
    from vprompt.data.vtab import find_folder

    (tmp_path / "cifar").mkdir()
    assert find_folder(tmp_path / "cifar100") == tmp_path / "cifar"
    (tmp_path / "cifar100").mkdir()
    assert find_folder(tmp_path / "cifar100") == tmp_path / "cifar100"
    assert find_folder(tmp_path / "dtd") is None and find_folder(tmp_path / "nowhere") is None
