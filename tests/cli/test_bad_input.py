"""Bad input: a clear sentence, exit code 1, and nothing half-written, from the command line."""

import json
import pickle
import resource
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # steps this small only wait for a second thread
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def paint(path, value=100, mode="RGB"):
    """Write one picture, of any mode that Pillow can write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shades = np.arange(64, dtype=np.uint32).reshape(8, 8) + value
    if mode == "I;16":
        image = Image.fromarray((shades * 257).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray((shades / 255).astype(np.float32))
    else:
        image = Image.fromarray(shades.astype(np.uint8)).convert(mode)
    image.save(path)
    return path


def paint_classes(root, **counts):
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            paint(root / name / f"{index:02d}.png", 80 * number + index)
    return root


@pytest.fixture
def learn(tmp_path):
    """Return a function that gives the words of a small `learn` into `tmp_path/out/it`."""

    def words(task, *more):
        output = ("--output", tmp_path / "out" / "it")
        quick = ("--epochs", 1, "--prompt-length", 1, "--quiet")
        return ("learn", task, "--model", "tiny", *quick, *output, *more)

    return words


@pytest.fixture
def nothing_written(tmp_path):
    """Check at the end that no artefact, whole or half, is where one was to be."""
    yield
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))


@pytest.fixture
def artifact(tiny, pool, tmp_path):
    """An artefact on disk for two classes, in a pool of its own."""
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head

    config = make_config(tiny, pool["birds"], ("dark", "light"))
    head = Head(torch.ones(2, tiny.feature_dim), torch.zeros(2))
    made = Artifact(pool["birds"], head, torch.zeros(tiny.feature_dim), config)
    save_artifact(made, tmp_path / "pool" / "birds")
    return tmp_path / "pool" / "birds"


@pytest.fixture
def images(tmp_path):
    return paint_classes(tmp_path / "shades", dark=8, light=8)


# Names


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "words, saying",
    [
        (["--method", "vtp"], ["No method called 'vtp'", "Did you mean 'vpt'", "linear"]),
        (["--method", "vpt(depe=True)"], ["no setting 'depe'", "Did you mean 'deep'"]),
        (["--method", "vpt(3)"], ["needs its name", "key=value"]),
        (["--method", "vpt(deep=True"], ["Cannot read"]),
        (["--method", "vpt(prompt_init=ones)"], ["No prompt_init called 'ones'", "zeros"]),
        (["--model", "tinny"], ["tinny"]),
        (["--model", "tiny(sed=1)"], ["tiny has no setting 'sed'", "Did you mean 'seed'"]),
        (["--model", "timm_vit(model=resnet18, pretrained=False)"], ["resnet18", "vit_*"]),
        (["--model", "timm_vit(model=vit_hug, pretrained=False)"], ["vit_hug", "spelling"]),
    ],
    ids=str,
)
def test_an_unknown_name_or_setting(fails, learn, images, words, saying):
    fails(*learn(images, *words), saying=saying)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "task, saying",
    [
        ("digit", ["no task of that name", "Did you mean 'digits'"]),
        ("digits(split_sed=1)", ["has no setting 'split_sed'", "Did you mean 'split_seed'"]),
        ("no/such/folder", ["No file or folder at 'no/such/folder'", "folder of class folders"]),
        ("folder(root=nowhere)", ["No folder at nowhere"]),
    ],
    ids=str,
)
def test_an_unknown_task(fails, learn, task, saying):
    fails(*learn(task), saying=saying)


# Folders and labels


@pytest.mark.usefixtures("nothing_written")
def test_an_empty_folder(fails, learn, tmp_path):
    (tmp_path / "empty").mkdir()
    fails(*learn(tmp_path / "empty"), saying=["empty has no class folders", "<class>/<image>"])


@pytest.mark.usefixtures("nothing_written")
def test_a_class_folder_without_images(fails, learn, images):
    (images / "grey").mkdir()
    fails(*learn(images), saying=["grey holds no image"])


@pytest.mark.usefixtures("nothing_written")
def test_a_class_with_one_image(fails, learn, images):
    paint(images / "grey" / "0.png")
    fails(*learn(images), saying=["one image only: 'grey'"])


@pytest.mark.usefixtures("nothing_written")
def test_one_class_alone(fails, learn, tmp_path):
    root = paint_classes(tmp_path / "shades", dark=8)
    fails(*learn(root), saying=["one class only", "needs two"])


@pytest.mark.usefixtures("nothing_written")
def test_a_class_with_one_training_image(fails, learn, tmp_path):
    root = tmp_path / "shades"
    paint_classes(root / "train", dark=3, light=1)
    paint_classes(root / "val", dark=2, light=2)
    fails(*learn(root), saying=["one training image: 'light'"])


@pytest.mark.parametrize("where", ["val", "test"])
def test_a_label_absent_from_training(fails, vprompt, learn, tmp_path, where):
    root = tmp_path / "shades"
    paint_classes(root / "train", dark=4, light=4)
    for split in ("val", "test"):
        paint_classes(root / split, dark=2, light=2)
    paint(root / where / "grey" / "0.png")
    fails(*learn(root), saying=["no training image shows: 'grey'", "--allow-absent"])
    assert not (tmp_path / "out").exists()
    assert vprompt(*learn(root, "--allow-absent"))[0] == 0


@pytest.mark.usefixtures("nothing_written")
def test_a_table_that_names_a_missing_image(fails, learn, images):
    table = images / "list.csv"
    table.write_text("image,label\ndark/00.png,dark\ndark/99.png,dark\n")
    fails(*learn(table), saying=["line 3", "99.png"])


# Images


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n cut"], ids=str)
def test_an_unreadable_image_is_named_and_left_out_only_when_asked(
    fails, vprompt, learn, images, tmp_path, data
):
    for name in ("00", "01", "02", "03"):  # at least one of them is in train
        (images / "dark" / f"{name}.png").write_bytes(data)
    fails(*learn(images), saying=["images cannot be read", "dark/0", "--skip-bad"])
    assert not (tmp_path / "out").exists()
    assert vprompt(*learn(images, "--skip-bad"))[0] == 0
    record = json.loads((tmp_path / "out" / "it" / "run.json").read_text())
    [left] = record["task"]["census"]["left_out"]
    assert record["test"] and left["reason"] == "unreadable"
    assert left["count"] == record["task"]["facts"]["skipped_unreadable"]
    assert set(left["examples"]) <= {"00.png", "01.png", "02.png", "03.png"}


def test_a_truncated_image_is_named(fails, artifact, images, tmp_path):
    whole = (images / "dark" / "03.png").read_bytes()
    (images / "dark" / "03.png").write_bytes(whole[: len(whole) - 30])
    words = ["predict", images, "--artifact", artifact, "--output", tmp_path / "found.csv", "-q"]
    fails(*words, saying=["1 of 16 images cannot be read", "03.png"])
    assert not (tmp_path / "found.csv").exists()


@pytest.mark.usefixtures("nothing_written")
def test_images_none_of_which_can_be_read(fails, learn, images):
    for path in images.rglob("*.png"):
        path.write_bytes(b"not an image")
    fails(*learn(images, "--skip-bad"), saying=["None of", "can be read"])


@pytest.mark.usefixtures("nothing_written")
def test_a_class_none_of_whose_images_can_be_read(fails, learn, images):
    for path in (images / "dark").iterdir():
        path.write_bytes(b"not an image")
    fails(*learn(images, "--skip-bad"), saying=["dark"])


KINDS = [("L", "png"), ("1", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("CMYK", "jpg")]
KINDS += [("I;16", "png"), ("CMYK", "tif"), ("F", "tif"), ("1", "bmp")]


def test_images_of_every_kind_are_learned_from_and_labelled(vprompt, learn, images, tmp_path):
    for mode, suffix in KINDS:
        for name, value in (("dark", 0), ("light", 150)):
            paint(images / name / f"{mode.replace(';', '')}.{suffix}", value, mode)
    code, _, err = vprompt(*learn(images))
    assert code == 0, err
    words = ["predict", images, "--artifact", tmp_path / "out" / "it", "--json", "-q"]
    code, out, err = vprompt(*words)
    assert code == 0, err
    assert len(json.loads(out)) == 2 * (8 + len(KINDS))


# Artefacts of strangers


@pytest.fixture
def refuses(fails, artifact, images, tmp_path):
    """Return a function that checks that every command refuses the broken artefact."""
    out = tmp_path / "out"

    def check(*saying):
        pool = artifact.parent
        output = ("--output", out / "found.csv")
        fails("predict", images, "--artifact", artifact, "-q", *output, saying=saying)
        fails("score", images, "--pool", pool, "--model", "tiny", "-q", saying=saying)
        words = ["combine", images, "--pool", pool, "--model", "tiny", "-q"]
        fails(*words, "--output", out / "it", saying=saying)
        fails("pool", "show", artifact, saying=saying)
        assert not out.exists()

    return check


def test_a_truncated_artefact(artifact, refuses):
    whole = (artifact / TENSORS).read_bytes()
    (artifact / TENSORS).write_bytes(whole[: len(whole) // 2])
    refuses("truncated", TENSORS)


def test_an_artefact_with_a_number_that_is_none(artifact, refuses):
    from safetensors.torch import load_file, save_file

    tensors = load_file(artifact / TENSORS)
    tensors["prompt_embeddings.0"][0, 0] = float("nan")
    save_file(tensors, artifact / TENSORS, {"format": "pt"})
    refuses("not finite", "prompt_embeddings.0")


class Explosive:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_an_artefact_with_a_pickle(artifact, refuses, tmp_path):
    (artifact / TENSORS).unlink()
    bomb = pickle.dumps(Explosive(str(tmp_path / "exploded")))
    (artifact / "adapter_model.bin").write_bytes(bomb)
    refuses("adapter_model.bin", "pickle")
    assert not (tmp_path / "exploded").exists()


def test_an_artefact_with_a_path_outside_its_folder(artifact, refuses, tmp_path):
    shutil.copy(artifact / TENSORS, tmp_path / "elsewhere")
    (artifact / TENSORS).unlink()
    (artifact / TENSORS).symlink_to(tmp_path / "elsewhere")
    refuses(TENSORS, "outside its folder")


def test_an_artefact_of_another_backbone(fails, vprompt, artifact, images, tmp_path):
    saying = ["learned on 'tiny'", "base_model_fingerprint", "--force"]
    other = ("--model", "tiny(seed=1)", "-q")
    fails("predict", images, "--artifact", artifact, *other, saying=saying)
    pool, output = ("--pool", artifact.parent), ("--output", tmp_path / "out")
    fails("score", images, *pool, *other, saying=saying)
    fails("combine", images, *pool, *other, *output, saying=saying)
    assert not (tmp_path / "out").exists()
    assert vprompt("predict", images, "--artifact", artifact, *other, "--force")[0] == 0


# Pools


def test_a_pool_of_one(vprompt, artifact, images, tmp_path):
    words = ["--pool", artifact.parent, "--epochs", 1, "-q"]
    code, out, err = vprompt("combine", images, *words, "--output", tmp_path / "out")
    assert code == 0 and "birds" in out and "1.000" in out, err
    assert vprompt("score", images, "--pool", artifact.parent, "-q")[0] == 0


def test_no_pool_and_an_empty_pool(fails, images, tmp_path):
    (tmp_path / "empty").mkdir()
    for verb in ("score", "combine"):
        words = [verb, images, "--model", "tiny", "--pool"]
        fails(*words, tmp_path / "nowhere", saying=["No pool at"])
        fails(*words, tmp_path / "empty", saying=["holds no artefact", "vprompt learn"])


# Disks


def test_a_disk_that_is_full(fails, learn, images, tmp_path, monkeypatch):
    from vprompt.core import files

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "rename_new", full)
    fails(*learn(images), saying=["Could not write", "No space left on device", "free some space"])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_disk_that_fills_up_while_writing(fails, vprompt, learn, images, tmp_path, epochs):
    """The error that safetensors itself raises, for an artefact and for a checkpoint."""
    words = [*learn(images), "--no-test", "--epochs", epochs]
    assert vprompt(*words)[0] == 0  # the decoded images are in the cache now
    shutil.rmtree(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        fails(*words, saying=["Could not write", "File too large"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").glob("*"))


def test_an_output_below_a_file(fails, learn, images, tmp_path):
    (tmp_path / "out").write_text("a file")
    fails(*learn(images), saying=["out"])
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("place", ["file/cache", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_stops_no_run(
    vprompt, learn, images, tmp_path, monkeypatch, place
):
    """It is there for speed; what it would have held is computed, and the same comes out."""
    assert vprompt(*learn(images))[0] == 0
    tensors = (tmp_path / "out" / "it" / TENSORS).read_bytes()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VPROMPT_CACHE", str(tmp_path / place))
    code, _, err = vprompt(*learn(images, "--overwrite"))
    assert code == 0, err
    assert "cannot be written" in err and "VPROMPT_CACHE" in err and err.count("vprompt: ") == 1
    assert (tmp_path / "out" / "it" / TENSORS).read_bytes() == tensors
    words = ["predict", images, "--artifact", tmp_path / "out" / "it", "--quiet"]
    assert vprompt(*words)[0] == 0
