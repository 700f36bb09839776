"""Reading: folders and lists in the forms that people have them, and what is said of them."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def draw(path, value=0, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1" if path.suffix == ".pbm" else "L", (16, 16), value).save(path, kind)
    return path


@pytest.fixture
def fill(tmp_path):
    """Return a function that draws `count` images of each class below a folder of `tmp_path`."""

    def make(below, classes=("cat", "dog"), count=6):
        for name in classes:
            for index in range(count):
                draw(tmp_path / below / name / f"{index:02d}.png", index)
        return tmp_path / below

    return make


@pytest.fixture
def census(tmp_path):
    """Return a function that opens a task and takes its census."""
    from vprompt import open_task

    def take(place="data", **settings):
        text = str(tmp_path / place) if "(" not in str(place) else place
        found = open_task(text, **settings).census()
        json.dumps(found.to_json())
        return found

    return take


def said(found):
    return "\n".join(found.sentences())


# Splits


@pytest.mark.parametrize(
    "train, test",
    [
        ("Training", "Testing"),
        ("train", "Test"),
        ("TRAIN", "TEST"),
        ("trainset", "testset"),
        ("train_images", "test_images"),
        ("images-train", "images-test"),
        ("TrainData", "TestData"),
        ("train2017", "test2017"),
        ("seg_train", "seg_test"),
        ("training", "evaluation"),
    ],
)
def test_folders_are_splits_in_any_usual_spelling(fill, census, train, test):
    fill(f"data/{train}", count=5)
    fill(f"data/{test}", count=10)
    found = census()
    assert found.classes == ("cat", "dog")
    assert found.images == {"train": 8, "val": 2, "test": 20}
    assert found.sizes().startswith(
        f"train 8, val 2, test 20: given by the folders {train}, {test}"
    )


@pytest.mark.parametrize("word", ["validation", "Valid", "val", "dev", "valid_images"])
def test_validation_folders_too(fill, census, word):
    for name, count in (("train", 5), (word, 3), ("test", 10)):
        fill(f"data/{name}", count=count)
    assert census().images == {"train": 10, "val": 6, "test": 20}


@pytest.mark.parametrize(
    "classes",
    [
        ("valid", "invalid"),
        ("train station", "test tube"),
        ("bus", "car", "train"),
        ("dev", "ops"),
        ("cup", "test tube"),
        ("dev1", "dev2"),
    ],
)
def test_class_names_that_sound_like_splits_stay_classes(fill, census, classes):
    fill("data", classes, 10)
    assert census().classes == tuple(sorted(classes))
    assert census(all_test=True).images == {"test": 10 * len(classes)}


def test_two_folders_of_one_split_are_refused(fill, census, refused):
    for name in ("train", "Training", "test"):
        fill(f"data/{name}")
    with refused("several train folders: Training, train"):
        census()


def test_splits_may_stand_inside_the_classes(fill, census):
    fill("data/cat", ("train", "test"), 10)
    fill("data/dog", ("train", "test"), 10)
    found = census()
    assert found.classes == ("cat", "dog")
    assert found.images == {"train": 16, "val": 4, "test": 20} and "in every class" in said(found)


@pytest.mark.parametrize("below", ["images", "archive/images", "a/b/c"])
def test_one_folder_too_high_is_found_and_named(fill, census, tmp_path, below):
    fill(f"data/{below}", count=20)
    (tmp_path / "data/README.md").write_text("about")
    found = census()
    assert found.classes == ("cat", "dog")
    assert f"class folders were found in {tmp_path / 'data' / below}" in said(found)
    assert "1 ending in .md (" in said(found)


def test_wrappers_around_splits_and_in_them(fill, census, tmp_path):
    fill("data/archive/train/train", count=5)
    fill("data/archive/test/images", count=10)
    found = census()
    assert found.classes == ("cat", "dog") and found.images["test"] == 20
    assert f"found in {tmp_path / 'data/archive'}" in said(found)


def test_folders_of_one_structure_are_said_to_be_taken_for_classes(fill, census, tmp_path):
    for name in ("color", "grey"):
        fill(f"data/{name}", count=10)
    found = census()
    assert found.classes == ("color", "grey")
    assert (
        f"each holds the folders cat, dog; if those are the classes, name one of them: "
        f"{tmp_path / 'data/color'}" in said(found)
    )


def test_a_folder_without_images_beside_one_that_wraps(fill, census, tmp_path):
    fill("data/images", count=10)
    (tmp_path / "data/annotations").mkdir()
    (tmp_path / "data/annotations/00.xml").write_text("")
    found = census()
    assert found.classes == ("cat", "dog") and "1 ending in .xml (annotations/00.xml)" in said(
        found
    )


# What has no labels


def loose(folder, count=4):
    for index in range(count):
        draw(folder / f"{index}.png")


@pytest.mark.parametrize("name", ["test", "Testing", "val"])
def test_a_split_without_class_folders_is_left_out_aloud(fill, census, tmp_path, name):
    fill("data/train", count=25)
    loose(tmp_path / "data" / name)
    found = census()
    assert found.images == {"train": 32, "val": 8, "test": 10}  # so train is cut
    assert "4 without a label" in said(found) and f"{name}/ is not used" in said(found)
    assert "have no labels" in said(found) and "cut 64/16/20 by seed 0" in said(found)


@pytest.mark.parametrize("inner", ["unknown", "test", "images"])
def test_one_folder_that_is_no_class_is_no_label(fill, census, inner):
    fill("data/train", count=25)
    fill("data/test", (inner,), 3)
    assert "3 without a label" in said(census())


def test_a_validation_split_of_one_class_is_labelled(fill, census):
    fill("data/train", count=5)
    fill("data/val/cat", ("indoors", "outdoors"), 2)
    assert census().images == {"train": 10, "val": 4}


def test_unlabelled_images_beside_train_are_left_out_aloud(fill, census, tmp_path):
    fill("data/train", count=25)
    loose(tmp_path / "data/unlabeled")
    found = census()
    assert found.classes == ("cat", "dog")
    assert "4 beside the folders that are read (unlabeled/0.png" in said(found)


def test_a_test_folder_alone_is_nothing_to_learn_from(fill, census, refused):
    fill("data/test")
    with refused("holds test and no train", "vprompt evaluate", "--artifact"):
        census()


# What is measured


def test_a_plain_folder_and_a_test_folder_are_all_test_for_a_measurement(fill, census):
    fill("plain", count=15)
    fill("tested/test", count=15)
    for place in ("plain", "tested"):
        found = census(place, all_test=True)
        assert found.images == {"test": 30}
        assert found.sizes() == "test 30: all images taken as test"


def test_given_splits_are_kept_for_a_measurement(fill, census, tmp_path, refused):
    fill("data/train", count=5)
    fill("data/test", count=15)
    assert census(all_test=True).images["test"] == 30
    fill("other/train", count=5)
    loose(tmp_path / "other/test")
    with refused("other/test cannot be measured on", "no labels"):
        census("other", all_test=True)


def test_whoever_says_how_to_cut_gets_it_cut(fill, census):
    place = fill("data", count=10)
    found = census(f"folder(root='{place}', fractions=(0.5, 0, 0.5))", all_test=True)
    assert found.sizes() == "train 10, test 10: cut 50/0/50 by seed 0"
    found = census(f"folder(root='{place}', seed=3)", all_test=True)
    assert found.images == {"test": 20}


# Files


KINDS = ["jpg JPEG", "JPE JPEG", "jfif JPEG", "pgm PPM", "pbm PPM", "pnm PPM", "gif GIF"]
KINDS += ["webp WEBP", "avif AVIF", "jp2 JPEG2000", "j2k JPEG2000", "dib DIB", "apng PNG"]
KINDS += ["tga TGA", "TIF TIFF", "pcx PCX"]


def test_tasks_and_predictions_find_the_same_files_of_every_kind(fill, census, tmp_path):
    from vprompt.data.finding import suffixes
    from vprompt.inference.prediction import find_images

    fill("data", count=10)
    drawn = 0
    for kind in KINDS:
        suffix, name = kind.split()
        if f".{suffix.lower()}" in suffixes():
            draw(tmp_path / "data/cat" / f"it.{suffix}", 9, name)
            drawn += 1
    assert drawn >= 12  # an old Pillow lacks some
    for junk in ("._00.png", ".DS_Store", "Thumbs.db", "__MACOSX/00.png", "@eaDir/00.png"):
        path = tmp_path / "data/cat" / junk
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\26\7")
    for other in ("notes.txt", "IMG.HEIC", "b.txt", "README"):
        (tmp_path / "data/dog" / other).write_text("")
    found = census()
    assert sum(found.images.values()) == 20 + drawn
    assert len(find_images([tmp_path / "data"])) == 20 + drawn
    left = {each.reason: each for each in found.reading.left_out}
    assert left["hidden"].count == 5 and left["ending in .txt"].count == 2
    assert left["ending in .heic"].examples == ("dog/IMG.HEIC",)
    assert left["without a suffix"].examples == ("dog/README",)


def test_links_count_once_and_never_lead_upwards(fill, census, tmp_path):
    data = fill("data", count=10)
    far = fill("far", ("a", "b"), 5)
    (data / "cat/more").symlink_to(far / "a")
    (data / "dog/more").symlink_to(far / "b")
    (data / "cat/loop").symlink_to(data)
    (data / "cat/self").symlink_to(data / "cat")
    (data / "cat/nothing.png").symlink_to(tmp_path / "nothing")
    (data / "dog/again.png").symlink_to(data / "dog/00.png")
    (data / "bird").symlink_to(fill("birds", (".",), 10))
    found = census()
    assert found.classes == ("bird", "cat", "dog")
    assert sum(found.images.values()) == 30 + 10
    left = {each.reason: each.count for each in found.reading.left_out}
    assert left["linked to a folder above"] == 2 and left["linked to nothing"] == 1
    assert left["reached twice by links"] == 1
    assert "links followed: 4" in said(found)


def test_one_file_of_two_classes_or_splits_is_refused(fill, census, refused):
    data = fill("data")
    (data / "cat/more").symlink_to(data / "dog")
    with refused("are one file", "different classes or splits"):
        census()
    (fill("split/train") / "cat/0.png").symlink_to(fill("split/test") / "cat/00.png")
    with refused("split/train/cat/0.png", "split/test/cat/00.png", "are one file"):
        census("split")


def test_a_class_is_one_however_its_accent_is_written(fill, census):
    fill("data/train", (NFC, "tea"), 5)
    fill("data/test", (NFD, "tea"), 10)
    found = census()
    assert found.classes == (NFC, "tea") and found.images["test"] == 20


def test_classes_that_differ_in_case_alone_are_named(fill, census):
    fill("data", ("Cat", "cat", "dog"), 10)
    assert "differ in small and large letters: Cat, cat" in said(census())


def test_loose_files_and_lists_are_named(fill, census, tmp_path, refused):
    loose(fill("data", count=10), 2)
    assert "2 beside the class folders (0.png, 1.png)" in said(census())
    loose(tmp_path / "flat", 3)
    (tmp_path / "flat/metadata.csv").write_text("file_name,label\n")
    with refused("flat has no class folders, but 3 images", "named itself: .*flat/metadata.csv"):
        census("flat")


def test_a_competition_s_list_beside_its_images_is_named(fill, census, tmp_path, refused):
    """`train.csv` with ids, and the images in `train`, without their suffix in the list."""
    data = fill("data", (".",), 0)
    for index in range(20):
        draw(data / "train" / f"{index:03x}.png")
    loose(data / "test")
    rows = [f"{index:03x},{'cat' if index % 2 else 'dog'}" for index in range(20)]
    (data / "train.csv").write_text("id,breed\n" + "\n".join(rows))
    with refused("train has no class folders, but 20 images", "named itself: .*data/train.csv"):
        census()
    with refused("no column 'label'", "There are: breed, id"):
        census("data/train.csv")
    with refused("no image file at", "There is one in .*data/train", "20 of 20"):
        census(f"table(file='{data}/train.csv', label_column=breed)")
    found = census(f"table(file='{data}/train.csv', label_column=breed, root='{data}/train')")
    assert found.classes == ("cat", "dog") and sum(found.images.values()) == 20


def test_a_folder_that_may_not_be_read_is_named(fill, monkeypatch, refused):
    from vprompt import open_task
    from vprompt.data import finding

    data = fill("data")
    entries = finding._entries

    def closed(folder):
        if folder.name == "dog":
            monkeypatch.setattr(finding.os, "scandir", refuse)
        return entries(folder)

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(finding, "_entries", closed)
    with refused("data/dog cannot be read: Permission denied"):
        open_task(str(data))


# Lists


@pytest.fixture
def rows(fill):
    """The images of a folder, each with its label."""
    data = fill("data", count=10)
    paths = sorted(data.rglob("*.png"))
    return [(path.relative_to(data).as_posix(), path.parent.name) for path in paths]


def table(rows, head, mark, start=""):
    return start + "\n".join(mark.join(row) for row in ([head.split(",")] if head else []) + rows)


@pytest.mark.parametrize(
    "name, head, mark, start",
    [
        ("l.csv", "image,label", ",", ""),
        ("l.csv", "image,label", ";", ""),
        ("l.csv", "image,label", "\t", ""),
        ("l.csv", "image,label", "|", ""),
        ("l.csv", "image,label", ";", "sep=;\n"),
        ("l.csv", "image,label", "\t", '"sep=\t"\r\n'),
        ("l.tsv", "image,label", ",", ""),
        ("l.txt", "image,label", ";", ""),
        ("l.csv", "file_name,label", ",", ""),
        ("l.csv", "filepath,class", ",", ""),
        ("l.csv", "filename,target", ";", ""),
        ("l.csv", "Image,Label", ",", "\ufeff"),
        ("l.csv", "Image Path,Class Name", ",", ""),
        ("l.csv", "", ",", ""),
        ("l.txt", "", " ", ""),
        ("l.txt", "", "\t", ""),
        ("l.lst", "", "  ", ""),
    ],
)
def test_lists_of_every_form_are_read(rows, census, tmp_path, name, head, mark, start):
    (tmp_path / "data" / name).write_text(table(rows, head, mark, start), newline="")
    found = census(f"data/{name}")
    assert found.classes == ("cat", "dog")
    assert found.sizes() == "train 12, val 4, test 4: cut 64/16/20 by seed 0"


@pytest.mark.parametrize("name", ["l.csv", "l.txt", "l.json"])
def test_paths_of_windows_are_read(rows, census, tmp_path, name):
    back = [(image.replace("/", "\\"), label) for image, label in rows]
    text = json.dumps(dict(back)) if name == "l.json" else table(back, "image,label", ",")
    (tmp_path / "data" / name).write_text(text)
    assert sum(census(f"data/{name}").images.values()) == 20


def test_a_backslash_in_a_file_name_is_left_alone(tmp_path):
    from vprompt.data.lists import locate

    draw(tmp_path / "a\\b.png")
    draw(tmp_path / "c/d.png")
    assert locate(tmp_path, "a\\b.png") == tmp_path / "a\\b.png"
    assert locate(tmp_path, "c\\d.png") == tmp_path / "c/d.png"
    assert locate(tmp_path, "/c/d.png") == tmp_path / "c/d.png"
    assert locate(tmp_path, "nothing\0.png") is None and locate(tmp_path, "x" * 5000) is None


def test_a_path_is_found_however_its_accent_is_written(fill, tmp_path):
    from vprompt.data.lists import locate

    fill(NFD, ("a",), 1)
    assert locate(tmp_path, f"{NFC}/a/00.png") == tmp_path / NFD / "a/00.png"


def test_utf16_of_a_spreadsheet_is_read(rows, census, tmp_path):
    (tmp_path / "data/l.csv").write_bytes(table(rows, "image,label", "\t").encode("utf-16"))
    assert census("data/l.csv").classes == ("cat", "dog")


@pytest.mark.parametrize(
    "form",
    ["paths", "objects", "triples", "splits", "paths by split"],
)
def test_json_of_every_form_is_read(rows, census, tmp_path, form):
    parts = {"train": rows[:8] + rows[10:18], "test": rows[8:10] + rows[18:]}
    value = {
        "paths": dict(rows),
        "objects": [{"file_name": image, "label": label} for image, label in rows],
        "triples": [[image, 7, label] for image, label in rows],
        "splits": {word: [[i, 0, label] for i, label in part] for word, part in parts.items()},
        "paths by split": {word: dict(part) for word, part in parts.items()},
    }[form]
    (tmp_path / "data/l.json").write_text(json.dumps(value))
    found = census("data/l.json")
    assert found.classes == ("cat", "dog")
    assert found.images["test"] == 4 and ("given" in found.sizes()) == ("split" in form)


@pytest.mark.parametrize("text", ['{"images": [1], "annotations": []}', "[1, 2]", "3", "{}", "[["])
def test_json_that_is_no_list_says_what_one_is(tmp_path, census, refused, text):
    (tmp_path / "l.json").write_text(text)
    with refused("l.json"):
        census("l.json")


@pytest.mark.parametrize(
    "labels", [(0, 1, 1.0), ("0", "1", "1.0"), ("0.0", "1.", "1"), (0.0, 1, 1)]
)
def test_labels_1_and_1_0_are_one_class(rows, census, tmp_path, labels):
    values = [
        labels[0] if label == "cat" else labels[1 + n % 2] for n, (_, label) in enumerate(rows)
    ]
    lines = [json.dumps({"image": i, "label": v}) for (i, _), v in zip(rows, values, strict=True)]
    (tmp_path / "data/l.jsonl").write_text("\n".join(lines))
    assert census("data/l.jsonl").classes == ("0", "1")


def test_labels_that_only_look_alike_stay_apart(rows, census, tmp_path):
    labels = ("007", "7", "1.10", "1.1", "cat")
    made = [(image, labels[n % 5]) for n, (image, _) in enumerate(rows)]
    (tmp_path / "data/l.csv").write_text(table(made, "image,label", ","))
    assert census("data/l.csv").classes == ("007", "1.1", "1.10", "7", "cat")


def test_labels_are_composed(rows, census, tmp_path):
    made = [(image, (NFC, NFD, "tea", "tea")[n % 4]) for n, (image, _) in enumerate(rows)]
    (tmp_path / "data/l.csv").write_text(table(made, "image,label", ","))
    assert census("data/l.csv").classes == (NFC, "tea")


def test_names_and_labels_of_text_lists_may_hold_spaces(tmp_path):
    from vprompt.data import lists

    draw(tmp_path / "my dir/a b.png")
    (tmp_path / "l.txt").write_text(
        "my dir/a b.png golden retriever\n\n# a remark\nmy dir/a b.png\n"
    )
    first, second = lists.read(tmp_path / "l.txt").rows
    assert first.values == {"image": "my dir/a b.png", "label": "golden retriever"}
    assert second.values == {"image": "my dir/a b.png"} and second.place == "line 4"


def test_files_that_are_there_are_not_denied(fill, census, tmp_path, refused):
    image = fill("data") / "cat/00.png"
    with refused("00.png is one image", r"\.csv", "vprompt predict"):
        census(image)
    (tmp_path / "list.yaml").write_text("a: 1")
    with refused("list.yaml is no list of images", r"\.txt"):
        census("list.yaml")


def test_missing_files_are_counted_and_explained(tmp_path, census, refused):
    draw(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("image,label\na.PNG,x\nb.png,y\n")
    with refused("line 2: no image file", "There is 'a.png'", "2 of 2", "root="):
        census("l.csv")
    (tmp_path / "l.csv").write_text("image,label\nC:\\me\\a.png,x\n")
    with refused("a computer with Windows", "relative to the list"):
        census("l.csv")


def test_lists_of_the_other_splits_are_named_and_joined(rows, census, tmp_path, refused):
    data = tmp_path / "data"
    (data / "train.txt").write_text(table(rows[:8] + rows[10:18], "", " "))
    (data / "test.txt").write_text(table(rows[8:10] + rows[18:], "", " "))
    assert f"table(file='{data}/train.txt', test='{data}/test.txt')" in said(
        census("data/train.txt")
    )
    found = census(f"table(file='{data}/train.txt', test='{data}/test.txt')")
    assert found.images == {"train": 12, "val": 4, "test": 4} and "their lists" in said(found)
    (data / "test.txt").write_text(table(rows[:1], "", " "))
    with refused("test.txt, line 1", "listed already in train.txt, line 1"):
        census(f"table(file='{data}/train.txt', test='{data}/test.txt')")


@pytest.mark.parametrize("head", ["Split", "subset", "partition"])
def test_a_column_of_splits_goes_by_other_names(rows, census, tmp_path, head):
    made = [(image, label, ("train", "test")[n % 2]) for n, (image, label) in enumerate(rows)]
    (tmp_path / "data/l.csv").write_text(table(made, f"image,label,{head}", ","))
    assert f"given by the column '{head}'" in census("data/l.csv").sizes()
    made = [(image, label, str(n % 5)) for n, (image, label) in enumerate(rows)]
    (tmp_path / "data/l.csv").write_text(table(made, "image,label,fold", ","))
    assert "cut 64/16/20" in census("data/l.csv").sizes()  # folds are no splits


@pytest.mark.parametrize(
    "words", [("Training", "Testing"), ("TRAIN", "dev"), ("train", "validation")]
)
def test_splits_in_a_column_have_their_spellings_too(rows, census, tmp_path, words):
    made = [(image, label, words[n % 2]) for n, (image, label) in enumerate(rows)]
    (tmp_path / "data/l.csv").write_text(table(made, "image,label,split", ","))
    assert "given by the column 'split'" in census("data/l.csv").sizes()


# Predictions


@pytest.mark.parametrize("suffix", ["csv", "txt", "json", "jsonl"])
def test_a_list_of_images_alone_is_for_predictions(rows, tmp_path, suffix):
    from vprompt.inference.prediction import find_images

    images = [image.replace("/", "\\") for image, _ in rows[:3]]
    text = {
        "csv": "image\n" + "\n".join(images),
        "txt": "\n".join(images),
        "json": json.dumps(images),
        "jsonl": "\n".join(json.dumps({"file_name": image}) for image in images),
    }[suffix]
    (tmp_path / "data" / f"l.{suffix}").write_text(text)
    found = find_images([tmp_path / "data" / f"l.{suffix}", tmp_path / "data/dog"])
    assert found[:3] == [tmp_path / "data" / image for image, _ in rows[:3]] and len(found) == 13


def test_a_list_that_names_artefacts_is_not_for_one(rows, tmp_path, refused):
    from vprompt.inference.prediction import find_images

    (tmp_path / "data/l.csv").write_text(f"image,artifact\n{rows[0][0]},a\n")
    with refused("names an artefact for every image", "Leave out --artifact"):
        find_images([tmp_path / "data/l.csv"])
    (tmp_path / "data/l.csv").write_text("photo,place\na,b\n")
    with refused("'photo', 'place'", "Call it `image`"):
        find_images([tmp_path / "data/l.csv"])


def test_what_a_folder_of_photographs_holds_besides_is_said(fill, tmp_path, refused):
    from vprompt.core.progress import Silent
    from vprompt.inference.prediction import find_images

    photos = fill("photos", ("x",), 3)
    (photos / "x/._00.png").write_bytes(b"\0")
    (photos / "x/notes.txt").write_text("")

    class Listener(Silent):
        said = ()

        def say(self, text):
            self.said = (*self.said, text)

    listener = Listener()
    assert len(find_images([photos], progress=listener)) == 3
    assert listener.said == (
        "3 images",
        "left out: 1 hidden (x/._00.png); 1 ending in .txt (x/notes.txt)",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.heic").write_text("")
    with refused("holds no image files, but 1 ending in .heic"):
        find_images([tmp_path / "empty"])


# The census


def test_few_test_images_are_said_to_tell_little(fill, census):
    fill("data", count=10)
    text = said(census())
    assert "4 test images tell little: each is worth 25 points" in text and "k-fold" in text
    fill("many", count=60)
    assert "tell little" not in said(census("many"))


def test_fewer_images_than_shots_are_told_and_recorded(fill):
    from vprompt import open_task

    task = open_task(str(fill("data", count=6))).few_shot(25, 0)
    census = task.census()
    assert "25 images of each class were asked for, and train has 4 of each class" in said(census)
    assert census.per_class["train"] == (4, 4) and "4 training images of each" in said(census)
    assert task.facts["few_shot"]["fewer"] == {"train": "4 of each class", "val": "1 of each class"}
    enough = open_task(str(fill("data", count=6))).few_shot(1, 0)
    assert "fewer" not in enough.facts["few_shot"]
    assert "1 images of each class drawn by seed 0" in said(enough.census())


def test_every_built_in_task_says_how_it_was_cut():
    from vprompt import open_task

    assert open_task("digits").census().sizes() == (
        "train 800, val 200, test 797: drawn in proportion to the classes by seed 0"
    )
    assert "by seed 2" in open_task("dsprites(train=64, val=32, test=32, seed=2)").census().sizes()


def test_sizes_are_counted_class_by_class(fill, census):
    fill("data/train", ("cat",), 5)
    fill("data/train", ("dog",), 10)
    fill("data/val", ("cat", "dog"), 2)
    found = census()
    assert found.per_class == {"train": (5, 10), "val": (2, 2)}
    assert "5 to 10 training images of each" in said(found)
    assert found.to_json()["images_per_class"]["train"] == [5, 10]


def test_a_drawn_array_has_a_census_too():
    from vprompt import Split, Task

    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    assert Task("t", ("a", "b"), Split("train", pixels, (0, 0, 1, 1))).census().sizes() == "train 4"


def test_over_all_folds_every_image_is_tested_on_once(fill, census, tmp_path, refused):
    from vprompt.data.task import Split
    from vprompt.tasks import _cutting

    fill("data")
    found = census(f"folder(root='{tmp_path}/data', fold='2/3', seed=4)")
    assert found.images == {"train": 6, "val": 2, "test": 4}
    assert "cut into 3 folds by seed 4, fold 2 for test" in said(found)
    assert "4 test images tell little" in said(found) and "k-fold" not in said(found)
    whole = Split("all", tuple(tmp_path / str(n) for n in range(20)), tuple([0, 1] * 10))
    settings = {"allow_absent": False, "where": "here"}
    tested = []
    for number in range(1, 6):
        made = _cutting.cut(whole, "ab", (1.0, 0.0, 0.0), 0, fold=f"{number}/5", **settings).splits
        parts = [{*made[name].images} for name in ("train", "val", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 20
        assert sorted(made["test"].labels) == [0, 0, 1, 1]
        tested += made["test"].images
    assert sorted(tested) == sorted(whole.images)
    for wrong in ("0/5", "6/5", "1/1", "half"):
        with refused("fold is such as '1/5'", wrong):
            census(f"folder(root='{tmp_path}/data', fold='{wrong}')")


def test_a_list_is_cut_into_folds_too(fill, census, tmp_path):
    root = fill("data")
    rows = "".join(f"{p.relative_to(tmp_path)},{p.parent.name}\n" for p in root.rglob("*.png"))
    (tmp_path / "list.csv").write_text("image,label\n" + rows)
    found = census(f"table(file='{tmp_path}/list.csv', fold='1/3')")
    assert found.images["test"] == 4 and "fold 1 for test" in said(found)
