"""Verify: every kind of damage to a folder is found, and a sound folder is left in peace."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image


def picture(number, size=8):
    """Return an image that no other number gives."""
    return Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    )


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


class Folder:
    """A VTAB-1k folder in the making."""

    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True)

    def image(self, name, data):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(data)

    def write(self, list_, *lines):
        (self.path / list_).write_text("".join(f"{line}\n" for line in lines))

    def split(self, name, count, first, classes=2, suffix="png", start=""):
        lines = []
        for number in range(first, first + count):
            lines.append(f"{name}/{number} .{suffix} {number % classes}")  # a space in the name
            self.image(lines[-1].rpartition(" ")[0], encoded(picture(number)))
        self.write(f"{start}{name}.txt", *lines)
        return lines


@pytest.fixture
def folder(tmp_path):
    """A sound folder of two classes: 6, 4 and 4 images."""
    made = Folder(tmp_path / "data" / "mine")
    train, val = made.split("train800", 6, 0), made.split("val200", 4, 10)
    made.split("test", 4, 20)
    made.write("train800val200.txt", *train, *val)
    made.write("classes.txt", "0 cat", "1 dog")
    return made


def verify(folder):
    from vprompt.data.verify import verify

    [found] = verify([folder.path])
    return found


def codes(found, level=None):
    return [f.code for f in found.findings if level in (None, f.level)]


def text_of(found, code):
    [finding] = [f for f in found.findings if f.code == code]
    return finding.text


def test_a_sound_folder_has_counts_and_no_findings(folder):
    found = verify(folder)
    assert found.sound and codes(found) == [] and (found.name, found.vtab) == ("mine", None)
    train = found.splits["train800"]
    assert (train.images, train.classes, train.fewest, train.most) == (6, 2, 3, 3)
    assert train.formats == {"PNG": 6} and train.smallest == train.largest == (8, 8)
    assert list(found.splits) == ["train800", "val200", "test", "train800val200"]
    json.dumps(found.to_json())


def reference_fingerprint(folder, list_, decode):
    """Return the fingerprint by a plain loop over the lines."""
    marks = []
    for line in (folder.path / list_).read_text().splitlines():
        name, _, label = line.rpartition(" ")
        data = (folder.path / name).read_bytes()
        if decode:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            data = f"{image.width} {image.height} ".encode() + image.tobytes()
        marks.append(f"{hashlib.sha256(data).hexdigest()} {label}")
    total = hashlib.sha256()
    for mark in sorted(marks):
        total.update(len(mark).to_bytes(8, "big") + mark.encode())
    return f"sha256:{total.hexdigest()}"


def test_fingerprints_are_those_of_a_plain_loop(folder):
    facts = verify(folder).splits["val200"]
    assert facts.files == reference_fingerprint(folder, "val200.txt", decode=False)
    assert facts.pixels == reference_fingerprint(folder, "val200.txt", decode=True)


def test_a_fingerprint_ignores_names_and_order_and_packing_but_not_labels(folder):
    before = verify(folder).splits["test"]
    lines = (folder.path / "test.txt").read_text().splitlines()
    renamed = []
    for index, line in enumerate(reversed(lines)):
        name, _, label = line.rpartition(" ")
        data = encoded(Image.open(folder.path / name), compress_level=0)
        folder.image(f"renamed/{index}.png", data)
        renamed.append(f"renamed/{index}.png {label}")
    folder.write("test.txt", *renamed)
    after = verify(folder).splits["test"]
    assert after.pixels == before.pixels and after.files != before.files
    folder.write("test.txt", *renamed[:-1], renamed[-1][:-1] + "1")
    assert verify(folder).splits["test"].pixels != before.pixels


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.unlink(), "No such file"),
        (lambda p: p.write_bytes(b""), "not an image"),
        (lambda p: p.write_bytes(b"<html>404</html>"), "not an image"),
        (lambda p: p.write_bytes(encoded(picture(1), "JPEG")[:-30]), "truncated"),
    ],
)
def test_files_that_cannot_be_read_are_errors(folder, damage, reason):
    damage(folder.path / "val200" / "11 .png")
    found = verify(folder)
    assert not found.sound and "unreadable" in codes(found, "error")
    texts = [f.text for f in found.findings if f.code == "unreadable"]
    assert len(texts) == 2  # val200 and the joined list
    assert "of 4 images of val200, 1 cannot be read" in texts[0] and reason in texts[0]
    assert "union" not in codes(found)


def test_a_file_listed_in_two_splits_is_an_error(folder):
    lines = (folder.path / "test.txt").read_text().splitlines()
    folder.write("test.txt", *lines, "train800/0 .png 0")
    assert "1 file listed in train800 and in test: 0 .png" in text_of(verify(folder), "same_path")


def test_a_file_listed_twice_in_a_split_is_an_error(folder):
    lines = (folder.path / "test.txt").read_text().splitlines()
    folder.write("test.txt", *lines, lines[0])
    found = verify(folder)
    assert codes(found, "error") == ["listed_twice"]


def test_the_same_image_under_two_names_is_a_warning(folder):
    folder.image("test/20 .png", (folder.path / "train800" / "0 .png").read_bytes())
    found = verify(folder)
    assert found.sound and codes(found) == ["same_file"]  # not said a second time of the pixels
    assert "1 image the same byte by byte in train800 and in test" in text_of(found, "same_file")


def test_the_same_pixels_packed_differently_are_a_warning(folder):
    folder.image("test/20 .png", encoded(picture(0), "BMP"))
    found = verify(folder)
    assert found.sound and codes(found) == ["same_pixels"]
    assert "0 .png = 20 .png" in text_of(found, "same_pixels")
    assert found.splits["test"].formats == {"BMP": 1, "PNG": 3}  # by content, not by name


def test_the_same_image_with_two_labels_is_a_warning(folder):
    folder.image("train800/1 .png", (folder.path / "train800" / "0 .png").read_bytes())
    folder.image("train800/4 .png", (folder.path / "train800" / "2 .png").read_bytes())
    found = verify(folder)
    assert "conflicting_labels" in codes(found, "warning")
    assert text_of(found, "conflicting_labels").startswith("1 image of train800 twice there")


def test_classes_that_are_absent_are_named(folder):
    folder.write("classes.txt", "0 cat", "1 dog", "2 emu", "3 fox")
    lines = (folder.path / "test.txt").read_text().splitlines()
    folder.write("test.txt", *lines[:-1], lines[-1][:-1] + "2")
    found = verify(folder)
    assert found.sound
    assert text_of(found, "untrained_classes") == "1 class of test never shown by train800: emu"
    assert text_of(found, "absent_from_train") == "of 4 classes, 2 absent from train800: emu, fox"
    assert text_of(found, "absent_from_val").endswith("emu, fox")


def test_a_joined_list_that_is_not_the_union_is_a_warning(folder):
    lines = (folder.path / "train800val200.txt").read_text().splitlines()
    folder.write("train800val200.txt", *lines[1:], "test/20 .png 0")
    text = text_of(verify(folder), "union")
    assert "1 images are missing and 1 are in neither" in text


def test_a_joined_list_may_name_copies_of_the_same_images(folder):
    lines = []
    for line in (folder.path / "train800val200.txt").read_text().splitlines():
        name, _, label = line.rpartition(" ")
        copied = f"joined/{name.replace('/', '_')}"
        folder.image(copied, (folder.path / name).read_bytes())
        lines.append(f"{copied} {label}")
    folder.write("train800val200.txt", *lines)
    assert codes(verify(folder)) == []


def test_a_line_that_cannot_be_read_is_an_error_and_the_rest_is_still_told(folder):
    folder.write("val200.txt", "val200/10 .png cat")
    found = verify(folder)
    assert codes(found, "error") == ["bad_list"] and "missing_split" in codes(found)
    assert found.splits["train800"].images == 6
    folder.write("train800.txt", "")
    assert codes(verify(folder), "error") == ["bad_list", "bad_list"]


def test_sizes_and_classes_of_a_vtab_task_are_held_against_the_published_ones(tmp_path):
    made = Folder(tmp_path / "cifar100")
    made.split("train800", 6, 0)
    made.split("val200", 4, 10)
    made.split("test", 4, 20)
    found = verify(made)
    assert found.vtab == "cifar" and found.classes == 100 and found.sound
    texts = [f.text for f in found.findings if f.code == "split_size"]
    assert "test has 4 images, that of CIFAR-100 has 10,000" in texts[2] and len(texts) == 3
    assert "only 2 of the 100 classes" in text_of(found, "class_count")
    made.write("test.txt", "test/20 .png 100")
    assert "label 100, but CIFAR-100 has 100 classes" in text_of(verify(made), "label_range")


@pytest.mark.parametrize(("size", "where"), [(6_084, "task_adaptation"), (6_085, "folder release")])
def test_both_sizes_of_caltech101_are_accepted_and_said(size, where):
    from pathlib import Path

    from vprompt.data.checks import Folder as Read
    from vprompt.data.checks import check_sizes
    from vprompt.data.vtab import find

    lists = {"test": ((Path("a.jpg"),) * size, (0,) * size)}
    found = list(check_sizes(Read(lists, (), {}, find("caltech101"))))
    assert any(f.code == "caltech_size" and where in f.text for f in found)
    assert not any(f.code == "split_size" for f in found)


def test_a_jpeg_copy_of_cifar_is_found_whatever_its_files_are_called(tmp_path):
    for name in ("cifar", "eurosat"):
        made = Folder(tmp_path / name)
        made.split("train800", 4, 0)
        made.image("train800/1 .png", encoded(picture(1), "JPEG"))
    from vprompt.data.verify import verify as verify_all

    cifar, eurosat = verify_all([tmp_path])
    assert "of 4 images, 1 stored with loss" in text_of(cifar, "lossy")
    assert "the cause is not proven" in text_of(cifar, "lossy")
    assert "lossy" not in codes(eurosat)  # published as JPEG


def test_a_known_bad_copy_is_an_error(folder, monkeypatch):
    from vprompt.data import verify as module

    mark = verify(folder).splits["val200"].pixels
    monkeypatch.setitem(module.KNOWN_BAD, mark, "labels were shuffled, see issue 1")
    found = verify(folder)
    assert not found.sound
    assert text_of(found, "known_bad") == "val200: labels were shuffled, see issue 1"


def test_the_list_of_known_bad_copies_is_well_formed():
    from vprompt.data.known import KNOWN_BAD

    for mark, sentence in KNOWN_BAD.items():
        assert mark.startswith("sha256:") and len(mark) == 71 and sentence


# Which tasks a path means


def test_a_folder_stands_for_all_its_tasks_and_a_prefix_for_one(folder):
    from vprompt.data.verify import verify as verify_all

    folder.split("train800", 4, 0, start="pose_")
    names = [found.name for found in verify_all([folder.path])]
    assert names == ["mine", "mine:pose"]
    [found] = verify_all([f"{folder.path}:pose"])
    assert found.name == "mine:pose" and list(found.splits) == ["train800"]
    assert len(verify_all([folder.path, f"{folder.path}:pose", folder.path.parent])) == 2


def test_a_root_lists_vtab_s_tasks_first_and_in_order(tmp_path):
    from vprompt.data.verify import tasks_in

    for name in ("zoo", "kitti", "cifar100", "ants"):
        Folder(tmp_path / name).split("train800", 4, 0)
    (tmp_path / "papers").mkdir()
    rows = tasks_in(tmp_path)
    assert [row["name"] for row in rows] == ["cifar100", "kitti", "ants", "zoo"]
    assert rows[0]["vtab"] == "CIFAR-100" and rows[0]["classes"] == 100
    assert (rows[3]["train800"], rows[3]["test"], rows[3]["vtab"]) == (4, 0, None)


def test_a_task_without_training_images_is_an_error_and_not_left_out(tmp_path, folder):
    from vprompt.data.verify import tasks_in
    from vprompt.data.verify import verify as verify_all

    broken = Folder(tmp_path / "data" / "svhn")
    broken.split("val200", 4, 0)
    broken.split("test", 4, 10)
    here, sound = verify_all([tmp_path / "data"])
    assert (here.name, here.sound, sound.name, sound.sound) == ("svhn", False, "mine", True)
    assert "no train800.txt" in here.findings[0].text
    rows = tasks_in(tmp_path / "data")
    assert ["no train800.txt" in row["problem"] for row in rows] == [True, False]


def test_a_path_without_tasks_says_what_a_task_is(tmp_path, folder, refused):
    from vprompt.data.verify import verify as verify_all

    (tmp_path / "empty").mkdir()
    with refused("holds no task in the VTAB-1k format", "train800.txt"):
        verify_all([tmp_path / "empty"])
    with refused("No folder at", "nowhere"):
        verify_all([tmp_path / "nowhere"])
    with refused("has no pose_train800.txt", "there: none"):
        verify_all([f"{folder.path}:pose"])


# Command line


def test_the_command_ends_with_1_on_errors_alone(folder, vprompt):
    folder.image("test/20 .png", (folder.path / "train800" / "0 .png").read_bytes())
    code, out, _ = vprompt("data", "verify", folder.path, "-q")
    assert code == 0 and "warning: mine: 1 image the same" in out
    assert "1 task: 0 errors, 1 warning, 0 notes" in out
    (folder.path / "test" / "21 .png").unlink()
    code, out, _ = vprompt("data", "verify", folder.path, "-q")
    assert code == 1 and "error: mine: of 4 images of test, 1 cannot be read" in out


def test_the_command_prints_json(folder, vprompt):
    code, out, _ = vprompt("data", "verify", folder.path, "--json", "-q")
    [found] = json.loads(out)
    assert code == 0 and found["sound"] and found["splits"]["test"]["images"] == 4
    code, out, _ = vprompt("data", "ls", folder.path.parent, "--json")
    assert code == 0 and json.loads(out)[0]["name"] == "mine"
    code, out, _ = vprompt("data", "ls", folder.path.parent)
    assert code == 0 and "mine" in out
