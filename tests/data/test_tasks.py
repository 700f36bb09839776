"""Tasks: where labelled images come from, how they are split, and what the errors say."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VPROMPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def load():
    """Return a function that loads a task by plug-in name, as the command line does."""
    from vprompt.core import registry

    return lambda plugin, **settings: registry.find("tasks", plugin)(**settings)


@pytest.fixture
def refused():
    """Return a context that expects a VPromptError with these words."""
    from vprompt.core.errors import VPromptError

    return lambda *words: pytest.raises(VPromptError, match="(?s)" + ".*".join(words))


def draw(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)
    return path


def class_folders(root, **counts):
    for name, count in counts.items():
        for index in range(count):
            draw(root / name / f"{index:02d}.png", index)
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def file_names(split):
    return [f"{path.parent.name}/{path.name}" for path in split.images]


# VTAB folders


@pytest.fixture
def vtab(tmp_path):
    """A VTAB-1k folder under an old name, with a space in a file name and a second task."""
    folder = tmp_path / "data" / "clevr_distance"
    lines = ["images/my cat.png 0", "images/b.png 1", "images/c.png 0", "images/d.png 1"]
    for line in lines:
        draw(folder / line.rpartition(" ")[0])
    write(folder / "train800.txt", "\n".join(lines) + "\n")
    write(folder / "val200.txt", "images/b.png 1\n\n")
    write(folder / "test.txt", "images/c.png 0\nimages/d.png 1\n")
    write(folder / "object_train800.txt", "\n".join(lines))
    write(folder / "object_classes.txt", "0 near by\n1 far away\n")
    return folder


def test_vtab_reads_the_three_lists(vtab, load):
    task = load("vtab", root=str(vtab))
    # Two labels occur, but the VTAB task of that name was published with six classes.
    assert (task.name, task.classes) == ("clevr_distance", tuple("012345"))
    assert (len(task.train), len(task.val), len(task.test)) == (4, 1, 2)
    assert task.train.images[0] == vtab / "images" / "my cat.png"


@pytest.mark.parametrize(
    "name",
    ["clevr_distance", "clevr_dist", 'clevr(task="closest_object_distance")'],
)
def test_vtab_finds_a_task_under_any_of_its_names(vtab, load, name):
    assert load("vtab", root=str(vtab.parent), name=name).name == "clevr_distance"


def test_a_bare_path_finds_a_task_under_any_of_its_names(vtab):
    from vprompt import open_task

    for name in ("clevr_distance", "clevr_dist", 'clevr(task="closest_object_distance")'):
        assert open_task(str(vtab.parent / name)).name == "clevr_distance"
    assert open_task(f"{vtab.parent / 'clevr_dist'}:object").name == "clevr_distance:object"


def test_an_alias_may_span_two_steps(tmp_path):
    from vprompt import open_task

    for line in ("a.png 0", "b.png 0", "c.png 1", "d.png 1"):
        draw(tmp_path / "cifar" / line.split()[0])
    write(tmp_path / "cifar" / "train800.txt", "a.png 0\nb.png 0\nc.png 1\nd.png 1\n")
    task = open_task(str(tmp_path / "vtab" / "cifar100"))
    assert task.name == "cifar" and len(task.classes) == 100  # as published, not as shown
    assert task.facts["vtab"] == "cifar" and "warning" not in task.facts


def test_a_jpeg_copy_of_lossless_images_is_warned_of_in_every_result(tmp_path, load):
    lines = [f"{index}.jpg {index % 2}" for index in range(4)]
    for name in ("cifar", "eurosat"):
        for line in lines:
            draw(tmp_path / name / line.split()[0])
        write(tmp_path / name / "train800.txt", "\n".join(lines))
    assert (
        "CIFAR-100 is published without loss"
        in load("vtab", root=str(tmp_path / "cifar")).facts["warning"]
    )
    assert "warning" not in load("vtab", root=str(tmp_path / "eurosat")).facts


def test_vtab_prefix_reads_another_task_on_the_same_images(vtab, load):
    task = load("vtab", root=str(vtab), prefix="object")
    assert task.name == "clevr_distance:object" and task.classes == ("near by", "far away")
    assert task.val is None and task.test is None


def test_vtab_lists_the_prefixes_there_are(vtab, load, refused):
    with refused("has no shape_train800.txt", "object_train800.txt, train800.txt"):
        load("vtab", root=str(vtab), prefix="shape")


def test_vtab_suggests_a_folder_that_exists(vtab, load, refused):
    with refused("No folder for the task 'clevr_distanse'", "Did you mean 'clevr_distance'"):
        load("vtab", root=str(vtab.parent), name="clevr_distanse")


@pytest.mark.parametrize("path", ["../outside.png", "images/../../outside.png", "/etc/passwd"])
def test_vtab_refuses_a_path_outside_its_folder(vtab, load, refused, path):
    write(vtab / "train800.txt", f"images/b.png 1\n{path} 0\n")
    with refused("train800.txt, line 2", "lies outside"):
        load("vtab", root=str(vtab))


@pytest.mark.parametrize("line", ["images/b.png", "images/b.png one", "images/b.png -1", " 3"])
def test_vtab_names_the_line_it_cannot_read(vtab, load, refused, line):
    write(vtab / "train800.txt", f"images/b.png 1\n{line}\n")
    with refused("train800.txt, line 2", "expected `relative/path label`"):
        load("vtab", root=str(vtab))


def test_vtab_list_without_images_is_an_error(vtab, load, refused):
    write(vtab / "val200.txt", "\n")
    with refused("val200.txt lists no images"):
        load("vtab", root=str(vtab))


# Folders of class folders


def test_folder_cuts_class_folders_class_by_class(tmp_path, load):
    root = class_folders(tmp_path / "pets", dog=25, cat=50)
    task = load("folder", root=str(root))
    assert (task.name, task.classes) == ("pets", ("cat", "dog"))
    assert task.class_counts() == [32, 16]
    assert np.bincount(task.val.labels).tolist() == [8, 4] and len(task.test) == 15
    assert task.facts["sizes"] == {"train": 48, "val": 12, "test": 15}
    json.dumps(task.facts)


def test_folder_takes_train_val_and_test_folders_as_they_are(tmp_path, load):
    class_folders(tmp_path / "train", cat=3, dog=2)
    class_folders(tmp_path / "valid", cat=1)
    class_folders(tmp_path / "test", cat=2, dog=2)
    task = load("folder", root=str(tmp_path))
    assert task.classes == ("cat", "dog") and task.facts["splits"] == "given by folders"
    assert (len(task.train), len(task.val), len(task.test)) == (5, 1, 4)
    assert task.train.labels == (0, 0, 0, 1, 1)


def test_folder_without_val_takes_a_fifth_of_train(tmp_path, load):
    class_folders(tmp_path / "train", cat=10, dog=20)
    class_folders(tmp_path / "test", cat=2, dog=2)
    task = load("folder", root=str(tmp_path))
    assert task.class_counts() == [8, 16] and np.bincount(task.val.labels).tolist() == [2, 4]
    assert not set(task.train.images) & set(task.val.images)


def test_folder_with_train_and_val_alone_does_not_take_them_for_classes(tmp_path, load):
    class_folders(tmp_path / "train", cat=3, dog=2)
    class_folders(tmp_path / "val", cat=1, dog=1)
    task = load("folder", root=str(tmp_path))
    assert task.classes == ("cat", "dog") and task.test is None


def test_folder_refuses_two_validation_folders(tmp_path, load, refused):
    for name in ("train", "val", "valid", "test"):
        class_folders(tmp_path / name, cat=2, dog=2)
    with refused("several validation folders: val, valid"):
        load("folder", root=str(tmp_path))


def test_folder_looks_deeper_and_ignores_hidden_and_other_files(tmp_path, load):
    class_folders(tmp_path, cat=4, dog=4)
    draw(tmp_path / "cat" / "kittens" / "small.png")
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "LOUD.JPG")
    write(tmp_path / "cat" / "notes.txt", "not an image")
    draw(tmp_path / "cat" / "._00.png")
    draw(tmp_path / "cat" / ".thumbnails" / "00.png")
    draw(tmp_path / ".git" / "00.png")
    task = load("folder", root=str(tmp_path), fractions=(1.0, 0.0, 0.0))
    assert task.classes == ("cat", "dog") and task.class_counts() == [6, 4]
    assert task.val is None and task.test is None


def test_folder_that_is_missing_or_empty_says_what_to_give(tmp_path, load, refused):
    with refused("No folder at", "nowhere", "class folders"):
        load("folder", root=str(tmp_path / "nowhere"))
    with refused("has no class folders", "<class>/<image>"):
        load("folder", root=str(tmp_path))


def test_folder_names_the_class_without_images(tmp_path, load, refused):
    class_folders(tmp_path, cat=4, dog=4)
    write(tmp_path / "horse" / "readme.txt", "soon")
    with refused("class folder", "horse", "holds no image", r"ending in \.txt", ".jpg"):
        load("folder", root=str(tmp_path))


def test_folder_with_one_class_only_is_refused(tmp_path, load, refused):
    with refused("one class only"):
        load("folder", root=str(class_folders(tmp_path, cat=9)))


def test_folder_names_the_class_with_one_image(tmp_path, load, refused):
    class_folders(tmp_path, cat=9, dog=9, emu=1)
    for fractions in ((0.64, 0.16, 0.2), (0.3, 0.3, 0.4)):  # it would go to train, to test
        with refused("one image only: 'emu'", "--allow-absent"):
            load("folder", root=str(tmp_path), fractions=fractions)
    task = load("folder", root=str(tmp_path), allow_absent=True)
    assert task.class_counts()[2] == 1


def test_folder_names_classes_that_training_does_not_show(tmp_path, load, refused):
    class_folders(tmp_path / "train", cat=5, dog=5)
    class_folders(tmp_path / "test", cat=2, emu=2)
    with refused("in 'test' that no training image shows: 'emu'", "--allow-absent"):
        load("folder", root=str(tmp_path))
    assert load("folder", root=str(tmp_path), allow_absent=True).classes == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5), (0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (1.2, -0.2, 0.0)]
)
def test_folder_refuses_fractions_that_are_no_shares(tmp_path, load, refused, fractions):
    with refused("three shares that sum to 1"):
        load("folder", root=str(class_folders(tmp_path, cat=4, dog=4)), fractions=fractions)


# Tables


def table_of(folder, count=10):
    """Draw images and return rows of `(image, label)`."""
    for index in range(count):
        draw(folder / "pictures" / f"{index}.png", index)
    return [(f"pictures/{index}.png", "odd" if index % 2 else "even") for index in range(count)]


@pytest.mark.parametrize(("suffix", "gap"), [("csv", ","), ("tsv", "\t")])
def test_table_reads_csv_and_tsv_with_given_splits(tmp_path, load, suffix, gap):
    words = ["train800"] * 6 + ["val200", "Validation", "test", "test"]
    rows = [gap.join((*row, word)) for row, word in zip(table_of(tmp_path), words, strict=True)]
    text = "\ufeff" + gap.join(("image", "label", "split")) + "\r\n" + "\r\n".join(rows)
    task = load("table", file=write(tmp_path / f"list.{suffix}", text))
    assert (task.name, task.classes) == ("list", ("even", "odd"))
    assert (len(task.train), len(task.val), len(task.test)) == (6, 2, 2)
    assert file_names(task.val) == ["pictures/6.png", "pictures/7.png"]
    json.dumps(task.facts)


def test_table_reads_json_lines_and_sorts_integer_labels_as_numbers(tmp_path, load):
    rows = [
        json.dumps({"image": image, "label": [10, 9, "2"][index % 3]})
        for index, (image, _) in enumerate(table_of(tmp_path, 15))
    ]
    task = load("table", file=write(tmp_path / "list.jsonl", "\n".join(rows) + "\n"))
    assert task.classes == ("2", "9", "10") and task.class_counts() == [3, 3, 3]


def test_table_finds_images_under_another_root(tmp_path, load):
    lines = ["image,label"] + [",".join(row) for row in table_of(tmp_path / "disk")]
    file = write(tmp_path / "lists" / "list.csv", "\n".join(lines))
    task = load("table", file=file, root=str(tmp_path / "disk"))
    assert task.train.images[0].is_relative_to(tmp_path / "disk")


def test_table_accepts_other_common_column_names(tmp_path, load):
    lines = ["target,impath"] + [f"{label},{image}" for image, label in table_of(tmp_path)]
    task = load("table", file=write(tmp_path / "list.csv", "\n".join(lines)))
    assert task.facts["columns"] == {"image": "impath", "label": "target"}


def test_table_does_not_replace_a_column_that_was_named(tmp_path, load, refused):
    lines = ["image,class"] + [",".join(row) for row in table_of(tmp_path)]
    file = write(tmp_path / "list.csv", "\n".join(lines))
    with refused("no column 'clas' for the label", "Did you mean 'class'", "label_column="):
        load("table", file=file, label_column="clas")
    with refused("no column 'fold' for the split", "split_column="):
        load("table", file=file, split_column="fold")


def test_table_without_an_image_column_lists_the_columns_there_are(tmp_path, load, refused):
    with refused("no column 'image'", "There are: kind, photo", "image_column="):
        load("table", file=write(tmp_path / "list.csv", "photo,kind\na.png,cat\n"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("pictures/9.png,odd", "line 3: expected 3 cells .*got 2"),
        ("pictures/99.png,odd,train", "line 3: no image file at .*99.png.*root="),
        ("pictures/9.png,,train", "line 3: the column 'label' is empty"),
        ("pictures/9.png,odd,trian", "line 3: no split called 'trian'.*Did you mean 'train'"),
        ("pictures/9.png,odd,", "line 3: the column 'split' is empty"),
        ("./pictures/0.png,odd,test", "line 3: .*is listed already in line 2"),
        ('"pictures/9.png,odd,train', "line 3: "),
    ],
)
def test_table_names_the_line_that_is_wrong(tmp_path, load, refused, row, words):
    table_of(tmp_path)
    text = f"image,label,split\npictures/0.png,even,train\n{row}\n"
    with refused(words):
        load("table", file=write(tmp_path / "list.csv", text))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": ', "line 2: not valid JSON"),
        ("[1, 2]", "line 2: expected an object"),
        (
            '{"image": "pictures/1.png", "label": [1]}',
            r"line 2: the label \[1\] looks like several classes",
        ),
        ('{"image": "pictures/1.png", "label": true}', r"line 2: a label is .*got true"),
        ('{"image": "pictures/1.png"}', "line 2: the column 'label' is empty"),
    ],
)
def test_table_names_the_json_line_that_is_wrong(tmp_path, load, refused, line, words):
    table_of(tmp_path)
    text = f'{{"image": "pictures/0.png", "label": "even"}}\n{line}\n'
    with refused(words):
        load("table", file=write(tmp_path / "list.jsonl", text))


def test_table_that_is_missing_empty_or_of_another_kind(tmp_path, load, refused):
    with refused("No file at", "gone.csv"):
        load("table", file=str(tmp_path / "gone.csv"))
    with refused("lists no images"):
        load("table", file=write(tmp_path / "empty.csv", "image,label\n"))
    with refused("list.xlsx", r"\.csv, \.tsv, \.jsonl"):
        load("table", file=write(tmp_path / "list.xlsx", ""))
    (tmp_path / "old.csv").write_bytes("image,label\ncaf\u00e9.png,1\n".encode("latin-1"))
    with refused("old.csv is not UTF-8"):
        load("table", file=str(tmp_path / "old.csv"))


def test_table_without_val_takes_a_fifth_of_train(tmp_path, load):
    words = ["train"] * 10 + ["test"] * 2
    rows = zip(table_of(tmp_path, 12), words, strict=True)
    lines = ["image,label,split"] + [",".join((*row, word)) for row, word in rows]
    task = load("table", file=write(tmp_path / "list.csv", "\n".join(lines)))
    assert task.class_counts() == [4, 4] and np.bincount(task.val.labels).tolist() == [1, 1]
    assert len(task.test) == 2 and "20% of train" in task.facts["splits"]


def test_table_without_training_rows_is_an_error(tmp_path, load, refused):
    table_of(tmp_path)
    text = "image,label,split\npictures/0.png,even,test\n"
    with refused("no row whose 'split' is 'train'"):
        load("table", file=write(tmp_path / "list.csv", text))


def test_table_names_the_class_with_one_image(tmp_path, load, refused):
    lines = ["image,label"] + [",".join(row) for row in table_of(tmp_path)]
    draw(tmp_path / "one.png")
    file = write(tmp_path / "list.csv", "\n".join([*lines, "one.png,prime"]))
    with refused("one image only: 'prime'"):
        load("table", file=file)


# Digits, ELPV, dSprites


def test_digits_are_those_of_scikit_learn_with_or_without_it(monkeypatch):
    import sklearn.datasets

    from vprompt.tasks import digits

    expected = sklearn.datasets.load_digits()
    with monkeypatch.context() as patch:
        patch.delattr(sklearn.datasets, "load_digits")  # its file is enough
        found = digits._digits.__wrapped__()
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    for images, labels in (found, digits._digits.__wrapped__()):
        assert np.array_equal(images, expected.images) and images.dtype == expected.images.dtype
        assert np.array_equal(labels, expected.target) and labels.dtype == expected.target.dtype


def test_digits_are_split_in_proportion(load):
    task = load("digits")
    assert (len(task.train), len(task.val), len(task.test)) == (800, 200, 797)
    assert task.train.images.shape == (800, 8, 8, 3) and task.train.images.max() == 255
    assert min(task.class_counts()) >= 76 and max(task.class_counts()) <= 82
    assert set(np.bincount(task.val.labels)) <= {18, 19, 20, 21, 22}
    json.dumps(task.facts)


@pytest.fixture
def elpv_wheel(tmp_path, monkeypatch):
    """A stand-in for the wheel: its table, and code that must not be run."""
    package = tmp_path / "site" / "elpv_dataset"
    write(package / "__init__.py", "raise AssertionError('the package was imported')")
    grades = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
    lines = [
        f"images/cell{i:04d}.png  {grades[i % 7 % 4]}   {'mono' if i % 3 else 'poly'}"
        for i in range(1500)
    ]
    write(package / "data" / "labels.csv", "\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    return package / "data"


def test_elpv_has_four_ordered_grades_and_two_module_types(elpv_wheel, load):
    task = load("elpv")
    assert task.classes[0] == "functional (0)" and task.classes[3] == "defective (1)"
    assert (len(task.train), len(task.val), len(task.test)) == (800, 200, 500)
    assert load("elpv", target="module").classes == ("mono", "poly")
    assert task.facts["licence"] == "CC BY-NC-SA 4.0"
    json.dumps(task.facts)


def test_elpv_may_use_fewer_test_cells_and_then_trains_on_the_same(elpv_wheel, load, refused):
    whole, few = load("elpv"), load("elpv", test=100)
    assert few.train.images == whole.train.images and few.val.images == whole.val.images
    assert len(few.test) == 100 and few.facts["sizes"]["test"] == 100
    shares = [count / 5 for count in sorted(whole.test.images_per_class)]
    assert sorted(few.test.images_per_class) == pytest.approx(shares, abs=1)
    for wrong in (0, 501):
        with refused("500 test cells", f"not {wrong}"):
            load("elpv", test=wrong)


def test_elpv_labels_follow_the_table(elpv_wheel, load):
    for target, label_of in (
        ("defect", lambda i: i % 7 % 4),
        ("module", lambda i: int(i % 3 == 0)),
    ):
        train = load("elpv", target=target).train
        numbers = [int(path.stem.removeprefix("cell")) for path in train.images]
        assert train.labels == tuple(label_of(number) for number in numbers)


def test_elpv_draws_classes_in_proportion(elpv_wheel, load):
    train = np.bincount(load("elpv").train.labels) / 800
    val = np.bincount(load("elpv").val.labels) / 200
    assert np.abs(train - val).max() < 0.011


@pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is None, reason="the ELPV wheel is not installed"
)
def test_elpv_reads_the_real_wheel(load):
    task = load("elpv")
    assert len(task.test) == 1624 and sum(task.class_counts()) == 800
    assert task.train.images[0].is_file() and task.train.images[-1].is_file()


def test_elpv_without_the_wheel_says_what_to_install(load, refused, monkeypatch):
    from vprompt.tasks import elpv

    monkeypatch.setattr(elpv.importlib.util, "find_spec", lambda name: None)
    with refused("not installed", "pip install --no-deps elpv-dataset==1.0.0.post1"):
        elpv.load()


def test_elpv_suggests_a_target_and_names_a_broken_line(elpv_wheel, load, refused):
    with refused("no target 'defects'", "Did you mean 'defect'", "defect, module"):
        load("elpv", target="defects")
    write(elpv_wheel / "labels.csv", "images/a.png 1.0 mono\nimages/b.png maybe mono\n")
    with refused("labels.csv, line 2", "path probability type"):
        load("elpv")


@pytest.mark.parametrize("target", ["location", "orientation"])
def test_dsprites_are_balanced_and_share_no_image(load, target):
    from vprompt.tasks import dsprites

    task = load("dsprites", target=target, train=64, val=32, test=32)
    assert task.train.images.shape == (64, 64, 64, 3) and len(task.test) == 32
    assert task.class_counts() == [4] * 16 and len(task.classes) == 16
    factors, _ = dsprites._draw_factors(target, 400, 0)
    images = dsprites._draw_images(factors).reshape(400, -1)
    assert len(np.unique(images, axis=0)) == 400
    json.dumps(task.facts)


def test_dsprites_labels_are_sixteenths_of_the_factor():
    from vprompt.tasks import dsprites

    factors, labels = dsprites._draw_factors("location", 200, 3)
    assert np.array_equal(labels, factors[:, 3] // 2)
    factors, labels = dsprites._draw_factors("orientation", 200, 3)
    assert np.array_equal(labels, np.floor(factors[:, 2] / 2.5))


def test_dsprites_position_moves_the_shape_and_orientation_turns_it():
    from vprompt.tasks import dsprites

    #          shape, scale, orientation, x, y
    factors = [
        (2, 5, 0, 0, 16),
        (2, 5, 0, 31, 16),
        (2, 5, 20, 0, 16),
        (0, 5, 1, 9, 9),
        (0, 5, 11, 9, 9),
    ]
    left, right, turned, square, same = dsprites._draw_images(np.array(factors))[..., 0]
    assert np.array_equal(left[:, :32], right[:, 32:]) and not left[:, 32:].any()
    assert not np.array_equal(left, turned)
    assert np.array_equal(square, same)  # a square looks the same every 90 degrees
    assert left.max() == 255 and left.min() == 0


def test_dsprites_refuses_targets_and_sizes_it_cannot_draw(load, refused):
    with refused("no target 'position'", "location, orientation"):
        load("dsprites", target="position")
    with refused("train=16", "at least 32"):
        load("dsprites", train=16)
    with refused("test=90000", "at most 20000"):
        load("dsprites", test=90_000)


# What holds for every task


@pytest.fixture(params=["folder", "table", "digits", "elpv", "dsprites"])
def any_task(request, tmp_path, load):
    """Return a function that loads one of the tasks with a seed."""
    settings = {}
    if request.param == "folder":
        settings = {"root": str(class_folders(tmp_path / "pets", cat=20, dog=20))}
    elif request.param == "table":
        lines = ["image,label"] + [",".join(row) for row in table_of(tmp_path, 40)]
        settings = {"file": write(tmp_path / "list.csv", "\n".join(lines))}
    elif request.param == "elpv":
        request.getfixturevalue("elpv_wheel")
    elif request.param == "dsprites":
        settings = {"train": 64, "val": 32, "test": 0}
    return lambda seed: load(request.param, split_seed=seed, **settings)


def content(split):
    if isinstance(split.images, tuple):
        return list(zip(split.images, split.labels, strict=True))
    return [
        (image.tobytes(), label) for image, label in zip(split.images, split.labels, strict=True)
    ]


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(any_task):
    first, again, other = any_task(0), any_task(0), any_task(1)
    assert content(first.train) == content(again.train)
    assert content(first.val) == content(again.val)
    assert content(first.train) != content(other.train)
    assert (first.facts["split_seed"], other.facts["split_seed"]) == (0, 1)


def test_splits_are_disjoint_and_complete(tmp_path, load):
    root = class_folders(tmp_path / "pets", cat=31, dog=17)
    task = load("folder", root=str(root))
    everything = set(root.rglob("*.png"))
    train, val = set(task.train.images), set(task.val.images)
    assert not train & val and len(task.test) == len(everything) - len(train) - len(val)
    labels = [0] * 31 + [1] * 17
    from vprompt.data.task import split_by_class

    parts = split_by_class(labels, (0.64, 0.16, 0.2), 0)
    assert sorted(row for part in parts for row in part) == list(range(48))


def test_train_and_val_share_no_row(any_task):
    task = any_task(0)
    if isinstance(task.train.images, tuple):
        assert not set(task.train.images) & set(task.val.images)
    assert task.facts["sizes"]["train"] == len(task.train)
    assert task.facts["sizes"]["val"] == len(task.val)


def test_few_shot_draws_are_repeatable_and_recorded(any_task):
    task = any_task(0)
    first, again, other = task.few_shot(2, 5), task.few_shot(2, 5), task.few_shot(2, 6)
    assert content(first.train) == content(again.train) != content(other.train)
    assert first.class_counts() == [2] * len(task.classes)
    drawn = first.facts["few_shot"]
    assert (drawn["shots"], drawn["seed"]) == (2, 5)
    assert content(task.train.subset(drawn["train"], "x")) == content(first.train)
    assert content(task.val.subset(drawn["val"], "x")) == content(first.val)
    assert first.train.name == "train_2shot_seed5" and "few_shot" not in task.facts
    json.dumps(first.facts)


def test_a_class_with_fewer_images_than_shots_is_taken_whole(tmp_path, load):
    root = class_folders(tmp_path / "pets", cat=20, dog=5)
    task = load("folder", root=str(root), fractions=(1.0, 0.0, 0.0))
    assert task.few_shot(8, 0).class_counts() == [8, 5]


def test_the_test_split_stays_closed_and_says_what_to_do(load, refused):
    sealed = load("dsprites", train=32, val=0, test=16).test
    assert len(sealed) == 16 and sealed.labels_present == frozenset(range(16))
    with refused(
        "can be opened by vprompt.results.measure alone", "validation", "measure.test_accuracy"
    ):
        sealed.open()
    assert sealed.opened == 0


def test_images_and_labels_must_be_as_many(tmp_path, refused):
    from vprompt.data.task import Split

    with refused("'train' has 1 images and 2 labels"):
        Split("train", (tmp_path / "a.png",), (0, 1))


def test_a_task_without_training_images_is_refused(refused):
    from vprompt.data.task import Split, Task

    with refused("has no training images"):
        Task("empty", ("a", "b"), Split("train", (), ()))


def test_a_class_with_one_training_image_is_named(tmp_path, refused):
    from vprompt.data.task import Split, Task

    paths = tuple(tmp_path / f"{index}.png" for index in range(3))
    with refused("one training image: 'b'", "at least two"):
        Task("pair", ("a", "b"), Split("train", paths, (0, 0, 1)))


@pytest.mark.parametrize("plugin", ["folder", "table", "digits", "elpv", "dsprites", "vtab"])
def test_every_setting_of_a_task_is_keyword_only(plugin):
    import inspect

    from vprompt.core import registry

    kinds = {p.kind for p in inspect.signature(registry.find("tasks", plugin)).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    assert registry.summary("tasks", plugin)
