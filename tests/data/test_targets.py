"""Targets: lists whose labels are one class, several, or a number, and what is asked of doubt."""

import json

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def listed(tmp_path):
    """Return a function that writes images and a list of them, and opens it as a task."""
    from vprompt.opening import open_task

    def write(labels, *, name="list.csv", column="label", images=None, split=None, **settings):
        rows = []
        for row, label in enumerate(labels):
            image = f"{row}.png" if images is None else images[row]
            if not (tmp_path / image).is_file():
                Image.new("RGB", (4, 4), (row % 256, 0, 0)).save(tmp_path / image)
            rows.append({"image": image, column: label})
            rows[-1] |= {} if split is None else {"split": split[row]}
        file = tmp_path / name
        if name.endswith(".jsonl"):
            file.write_text("\n".join(map(json.dumps, rows)))
        else:
            lines = [",".join(map(str, each.values())) for each in rows]
            file.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
        return open_task(str(file), **settings)

    return write


SETS = ["cat|dog", "dog", "[]", "cat", "cat|dog", "dog", "cat", "[]", "cat|dog", "cat"] * 2


def names(task, split):
    return [{task.classes[index] for index in label} for label in split.labels]


@pytest.mark.parametrize("mark", ["|", ";"])
def test_several_classes_stand_in_one_cell(listed, mark):
    task = listed([each.replace("|", mark) for each in SETS], target="several")
    assert task.target == "several" and task.classes == ("cat", "dog")
    assert len(task.train) + len(task.val) + len(task.test) == 20
    assert {"cat", "dog"} in names(task, task.train) and set() in names(task, task.train)
    counts = task.class_counts()
    assert counts[0] == sum("cat" in each for each in names(task, task.train))


def test_several_classes_stand_in_rows_of_one_image_and_in_lists_of_json(listed):
    images = [f"{row // 2}.png" for row in range(24)]
    rows = [("cat", "dog", "cow")[row % 3] for row in range(24)]
    task = listed(rows, images=images, target="several")
    assert len(task.train) + len(task.val) + len(task.test) == 12
    assert all(len(each) == 2 for each in names(task, task.train))
    lists = [each.split("|") if each != "[]" else [] for each in SETS]
    other = listed(lists, name="list.jsonl", target="several")
    same = listed(SETS, target="several")
    assert other.train.labels == same.train.labels


def test_labels_become_zeros_and_ones_or_numbers_in_double_precision():
    from vprompt.data import targets

    found = targets.tensor([(0, 2), (), (1,)], "several", 3)
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    numbers = targets.tensor([1764340000.25, 2.0], "number", 1)
    assert numbers.dtype == torch.float64 and numbers[0].item() == 1764340000.25
    assert targets.tensor([1, 0], "class", 2).dtype == torch.int64


def test_numbers_are_cut_so_that_every_part_spans_them(listed):
    values = [round(0.37 * row, 2) for row in range(100)]
    task = listed(values, target="number")
    assert task.classes == ("label",) and len(task.train) == 64 and len(task.val) == 16
    for split in (task.train, task.val):
        assert np.mean(split.labels) == pytest.approx(np.mean(values), abs=2.5)
        assert min(split.labels) < 8 and max(split.labels) > 29
    again = listed(values, target="number")
    assert again.train.labels == task.train.labels
    assert task.census().about.startswith("numbers (label) from ")


def test_parts_hold_every_class_in_proportion_and_every_row_once():
    from vprompt.data.targets import split_evenly

    labels = [(0,)] * 50 + [(0, 1)] * 10 + [()] * 40
    parts = split_evenly(labels, [0.6, 0.2, 0.2], seed=3)
    assert sorted(row for part in parts for row in part) == list(range(100))
    assert [len(part) for part in parts] == [60, 20, 20]
    assert [sum(labels[row] == (0, 1) for row in part) for part in parts] == [6, 2, 2]
    assert split_evenly(labels, [0.6, 0.2, 0.2], seed=3) == parts
    assert split_evenly(labels, [0.6, 0.2, 0.2], seed=4) != parts


@pytest.mark.parametrize("kind", ["several", "number"])
def test_folds_of_a_list_test_every_image_once(listed, kind):
    from vprompt.opening import open_task

    labels = SETS if kind == "several" else [0.5 * row for row in range(20)]
    whole = listed(labels, target=kind)
    file = whole.train.images[0].parent / whole.facts["file"]
    tested = set()
    for number in range(1, 5):
        parts = open_task(f"table(file='{file}', target={kind}, fold='{number}/4')")
        learned = {path.name for path in (*parts.train.images, *parts.val.images)}
        assert parts.target == kind and len(parts.test) == 5 and len(learned) == 15
        tested |= {f"{row}.png" for row in range(20)} - learned
    assert len(tested) == 20


# Questions, where a list does not say what it is


def test_a_bar_in_a_label_is_asked_about(listed, refused):
    with refused(r"line 2", r"'cat\|dog' looks like several", "--target several", "--target class"):
        listed(SETS)
    assert "cat|dog" in listed(SETS, target="class").classes


def test_many_different_numbers_are_asked_about(listed, refused):
    values = [0.5 * row for row in range(40)]
    with refused("40 different numbers on 40 images", "--target number", "--target class"):
        listed(values)
    with refused("beside words such as 'unknown'", "--target number"):
        listed([*values, "unknown"])
    assert len(listed([row % 30 for row in range(90)], target="class").classes) == 30


def test_many_whole_numbers_with_many_images_each_are_classes_and_it_is_said(listed):
    task = listed([row % 25 for row in range(200)])
    assert task.target == "class" and len(task.classes) == 25
    assert any("--target number" in note for note in task.reading.notes)
    few = listed([row % 5 for row in range(50)])
    assert not any("--target" in note for note in few.reading.notes)


def test_whoever_says_the_kind_is_not_asked(listed):
    assert listed([0.5 * row for row in range(40)], target="number").target == "number"
    assert listed(["cat", "dog"] * 10, target="several").reading.notes[0].startswith("no image has")


# Bad input: what was got, what was needed, what to type


@pytest.mark.parametrize(
    ("labels", "target", "words"),
    [
        (["cat", "", "dog"], "class", ["line 3", "'label' is empty", "Write the class"]),
        (
            ["cat|dog", ""],
            "several",
            ["line 3", "is empty", r"`\[\]` for an image that shows none"],
        ),
        ([1.5, ""], "number", ["line 3", "is empty", "Write the number"]),
        (
            [1, 2, "old", "new"],
            "number",
            ["line 4", "'old' is no number", "2 of 4", "--target class"],
        ),
        ([1, "nan", 3], "number", ["line 3", "is nan", "finite", "Write the number"]),
        ([1, "inf", 3], "number", ["line 3", "is inf", "finite"]),
        ([2.5] * 12, "number", ["one label for all", "2.5", "Add images"]),
        (["cat"] * 12, "several", ["one label for all", "cat", "Add images"]),
        (["cat"] * 12, "class", ["one class only", "a classifier needs two"]),
        ([" | "] * 3, "several", ["line 2", "names no class"]),
        (["[]"] * 4, "several", ["names no class in its column 'label'"]),
        ([1, 2, 3], "rank", ["`class`, `several`", "'rank'"]),
    ],
)
def test_a_list_that_cannot_be_learned_is_refused(listed, refused, labels, target, words):
    with refused(*words):
        listed(labels, target=target)


def test_commas_between_classes_are_asked_about(listed, refused):
    with refused("has neither", r"label_separator=','"):
        listed(["cat, dog", "cat"] * 6, name="list.jsonl", target="several")


def test_an_image_twice_is_refused_with_the_way_to_several_classes(listed, refused):
    with refused("listed already in line 2", "--target several"):
        listed(["cat", "dog"], images=["0.png", "0.png"])
    with refused("line 3", "another split than in .*line 2"):
        listed(
            ["cat", "dog"],
            images=["0.png", "0.png"],
            split=["train", "test"],
            target="several",
        )


def test_a_class_of_one_image_or_of_test_images_alone_is_refused(listed, refused):
    with refused("classes with one image only: 'owl'", "--allow-absent"):
        listed([*SETS, "owl"], target="several")
    split = ["train"] * 10 + ["test"] * 11
    with refused("classes in 'test' that no training image shows: 'owl'", "--allow-absent"):
        listed([*SETS, "owl|cat"], split=split, target="several")


def test_shots_are_of_classes(listed, refused):
    with refused("--shots draws images of each class", "a number has none"):
        listed([0.5 * row for row in range(40)], target="number").few_shot(4, 0)
    with refused("--shots", "an image has several"):
        listed(SETS, target="several").few_shot(4, 0)


def test_a_folder_has_classes_alone(tmp_path, refused):
    from vprompt.opening import open_task

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for row in range(6):
            Image.new("RGB", (4, 4)).save(tmp_path / "pets" / name / f"{row}.png")
    with refused("labels of the kind `class`, and `number` is wanted", "Give a list"):
        open_task(str(tmp_path / "pets"), target="number")
    assert open_task(str(tmp_path / "pets"), target="class").classes == ("cat", "dog")
    with refused("`class`, `several`"):
        open_task(str(tmp_path / "pets"), target="clas")


@pytest.mark.parametrize(
    ("target", "labels"), [("number", (1, 2)), ("number", (1.0, float("nan"))), ("several", (1, 0))]
)
def test_a_task_of_ones_own_is_checked(refused, target, labels):
    from vprompt.data.task import Split, Task

    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    with refused("has the label", "Mend it"):
        Task("own", ("a", "b"), Split("train", pixels, labels), target=target)
