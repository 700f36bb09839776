"""Build: VTAB-1k folders from torchvision's data sets, held against the published examples.

The data sets are tiny fakes in torchvision's own formats; nothing is downloaded.
"""

import hashlib
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def random_images(count, size=8, seed=0):
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def jpeg(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_images(1, seed=number)[0]).save(path, "JPEG")


def built(name, root, tmp_path, **settings):
    """Build a task and return its folder, its meta.json and its lists."""
    from vprompt.data.build import build

    folder, _ = build(name, root=root, output=tmp_path / "built", **settings)
    lists = {}
    for split in ("train800", "val200", "train800val200", "test"):
        lines = (folder / f"{split}.txt").read_text().splitlines()
        lists[split] = [(line.split()[0], int(line.split()[1])) for line in lines]
    return folder, json.loads((folder / "meta.json").read_text()), lists


def origins(folder, split):
    """Return the keys of a split's images, in order."""
    lines = (folder / "origin.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return [key for name, _, key in rows if name.startswith(f"images/{split}/")]


def shuffled(part, keys):
    """TFDS's order, written down a second time."""
    return sorted(keys, key=lambda key: int(hashlib.md5((part + key).encode()).hexdigest(), 16))


# Which examples: the VPT authors' published file names are the reference


def cut(name, **parts):
    from vprompt.data.examples import choose
    from vprompt.data.vtab import find

    chosen = choose(find(name), parts)
    return {split: [parts[c.part][row] for row in c.rows] for split, c in chosen.items()}


def test_cifar_s_examples_are_the_published_ones():
    found = cut("cifar", train=[str(i) for i in range(50_000)], test=[str(i) for i in range(10)])
    assert found["val200"][:5] == ["13431", "9237", "17462", "32685", "9518"]
    assert found["val200"][-3:] == ["45238", "33376", "1434"]
    assert found["train800"][0] == "16399"
    assert {"14543", "29369", "14354", "20988", "33303"} <= set(found["train800"])
    assert [len(found[split]) for split in ("train800", "val200")] == [800, 200]


def test_patch_camelyon_s_examples_are_the_published_ones():
    found = cut(
        "patch_camelyon",
        train=["train_0"],
        validation=[f"valid_{i}" for i in range(32_768)],
        test=["test_0"],
    )
    val = [3270, 10310, 20603, 11608, 13337, 4338, 11223, 31659]
    assert found["val200"][:8] == [f"valid_{i}" for i in val]


def test_eurosat_s_examples_are_the_published_ones():
    sizes = {
        "AnnualCrop": 3000,
        "Forest": 3000,
        "HerbaceousVegetation": 3000,
        "Highway": 2500,
        "Industrial": 2500,
        "Pasture": 2000,
        "PermanentCrop": 2500,
        "Residential": 3000,
        "River": 2500,
        "SeaLake": 3000,
    }
    keys = [f"{c}_{c}_{i}.jpg" for c, count in sizes.items() for i in range(1, count + 1)]
    found = cut("eurosat", train=keys)
    last = ["Pasture_1082", "AnnualCrop_2703", "River_2056", "Highway_1913"]
    assert found["val200"][-4:] == [f"{name.split('_')[0]}_{name}.jpg" for name in last]
    assert len(found["test"]) == 5_400


def test_clevr_s_examples_are_the_published_ones():
    keys = [f"CLEVR_train_{i:06d}.png" for i in range(70_000)]
    found = cut("clevr_dist", train=keys, validation=["CLEVR_val_000000.png"])
    numbers = [int(key[12:18]) for key in found["val200"]]
    assert numbers[:4] == [35084, 29360, 4525, 24831] and numbers[-2:] == [54142, 47496]
    train = {int(key[12:18]) for key in found["train800"]}
    assert {32877, 50492, 36216, 771, 51507, 14713, 36935} <= train


@pytest.mark.parametrize(
    ("share", "keys"),
    [  # of each published train800 a few names: all lie in the first 800 of so many
        (800 / 1880, "woven/woven_0011 scaly/scaly_0127 gauzy/gauzy_0118 pitted/pitted_0102"),
        (800 / 1020, "image_03783 image_06592 image_04298 image_04189 image_03313 image_05145"),
        (800 / 3680, "Sphynx_139 Ragdoll_172 newfoundland_171 saint_bernard_15 Bengal_152"),
        (800 / 76_128, "/c/church/outdoor/sun_bgmtorpigczbijkg /b/bar/sun_alpjideakulyfvze"),
    ],
)
def test_other_published_names_lie_where_the_order_puts_them(share, keys):
    from vprompt.data.examples import tfds_order

    names = [f"{key}.jpg" for key in keys.split()]
    others = [f"other_{i}" for i in range(2_000)]
    order = tfds_order("train", names + others)
    # With 2,000 unrelated keys among them, a rank is a share of the whole to within 3 per cent.
    assert max(order.index(row) for row in range(len(names))) < (share + 0.03) * len(order)


def test_a_slice_ends_where_the_next_of_its_part_begins():
    found = cut("oxford_iiit_pet", train=[str(i) for i in range(50)], test=["a", "b"])
    order = shuffled("train", [str(i) for i in range(50)])
    assert found["train800"] == order[:40] and found["val200"] == order[40:]
    found = cut("smallnorb_azi", train=["a"], test=[str(i) for i in range(10)])
    assert found["val200"] + found["test"] == shuffled("test", [str(i) for i in range(10)])


def test_a_seed_draws_another_order_that_ignores_how_the_keys_are_listed():
    from vprompt.data.examples import seeded_order

    keys = [str(i) for i in range(30)]
    first = [keys[row] for row in seeded_order(0)("train", keys)]
    assert first == [keys[::-1][row] for row in seeded_order(0)("train", keys[::-1])]
    assert sorted(first) == sorted(keys) and first != shuffled("train", keys)
    assert first != [keys[row] for row in seeded_order(1)("train", keys)]


@pytest.mark.parametrize("drawn", [False, True])
def test_a_whole_data_set_gives_the_official_examples_unless_its_parts_are_drawn(drawn):
    from vprompt.data.build import _describe
    from vprompt.data.examples import choose
    from vprompt.data.source import Part, Source
    from vprompt.data.vtab import find

    keys = {"train": 1_880, "validation": 1_880, "test": 1_880}
    parts = {p: Part(tuple(f"{p}{i}" for i in range(n)), len) for p, n in keys.items()}
    source = Source("DTD", (), parts, drawn=drawn)
    chosen = choose(find("dtd"), {name: part.keys for name, part in parts.items()})
    meta = _describe(find("dtd"), source, chosen, None)
    assert meta["official_examples"] is not drawn and meta["deviations"] == []
    assert meta["splits"]["train800"] == {"from": "train[0:800]", "images": 800}
    assert meta["splits"]["test"] == {"from": "test", "images": 1_880}
    assert not _describe(find("dtd"), source, chosen, 0)["official_examples"]


# CIFAR-100: arrays become PNG


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A CIFAR-100 of 200 training and 30 test images in torchvision's format."""
    from torchvision.datasets import CIFAR100

    root = tmp_path / "torchvision"
    home = root / CIFAR100.base_folder
    home.mkdir(parents=True)
    for name, count in (("train", 200), ("test", 30)):
        data = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [i % 100 for i in range(count)]
        (home / name).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}))
    names = [f"thing {i}" for i in range(100)]
    (home / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", None]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": None})
    return root


def cifar_pixels(root, name, row):
    raw = pickle.loads((root / "cifar-100-python" / name).read_bytes())["data"][row]
    return raw.reshape(3, 32, 32).transpose(1, 2, 0)


def test_cifar_is_written_without_loss_in_tfds_s_order(cifar, tmp_path):
    folder, meta, lists = built("cifar100", cifar, tmp_path)
    order = shuffled("train", [str(i) for i in range(200)])
    assert folder.name == "cifar" and origins(folder, "train800") == order[:180]
    assert origins(folder, "val200") == order[180:]
    for split, part in (("train800", "train"), ("test", "test")):
        for (name, label), key in list(zip(lists[split], origins(folder, split), strict=True))[:9]:
            image = Image.open(folder / name)
            assert image.format == "PNG" and label == int(key) % 100
            assert np.array_equal(np.asarray(image), cifar_pixels(cifar, part, int(key)))
    assert lists["train800val200"] == lists["train800"] + lists["val200"]
    assert (folder / "classes.txt").read_text().startswith("0 thing 0\n1 thing 1\n")
    assert meta["splits"]["val200"] == {"from": "train[180:200]", "images": 20}
    assert not meta["official_examples"] and "val200 has 20 images" in meta["deviations"][1]


def test_what_is_built_opens_and_verifies(cifar, tmp_path):
    from vprompt import open_task
    from vprompt.data.verify import verify

    folder, _, _ = built("cifar", cifar, tmp_path)
    task = open_task(str(folder.parent / "cifar100"), allow_absent=True)
    assert (len(task.train), len(task.val), len(task.test)) == (180, 20, 30)
    assert task.classes[7] == "thing 7"
    [found] = verify([folder])
    assert found.sound and "split_size" in {f.code for f in found.findings}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_building_is_deterministic_and_continues_after_a_stop(cifar, tmp_path, monkeypatch):
    from vprompt.data import build as module

    folder, _, _ = built("cifar", cifar, tmp_path / "once")
    written = []
    real = module._write_image

    def stops(target, image):
        if len(written) == 190:
            raise KeyboardInterrupt
        written.append(target.name)
        real(target, image)

    monkeypatch.setattr(module, "_write_image", stops)
    with pytest.raises(KeyboardInterrupt):
        built("cifar", cifar, tmp_path / "twice")
    there = tmp_path / "twice" / "built"
    assert [path.name for path in there.iterdir()] == [".cifar.partial"]
    torn = there / ".cifar.partial" / "images" / "val200" / ".000007.png.x1y2"
    torn.write_bytes(b"half of it")  # what a kill may leave
    written.clear()
    monkeypatch.setattr(module, "_write_image", lambda *a: (written.append(1), real(*a)))
    again, _, _ = built("cifar", cifar, tmp_path / "twice")
    assert len(written) == 230 - 190 and contents(again) == contents(folder)
    assert [path.name for path in there.iterdir()] == ["cifar"]


def test_what_is_built_already_is_left_alone_and_anything_else_refused(cifar, tmp_path, refused):
    folder, _, _ = built("cifar", cifar, tmp_path)
    before = (folder / "meta.json").stat().st_mtime_ns
    built("cifar", cifar, tmp_path)
    assert (folder / "meta.json").stat().st_mtime_ns == before
    with refused("exists already", "--overwrite"):
        built("cifar", cifar, tmp_path, seed=3)
    _, meta, lists = built("cifar", cifar, tmp_path, seed=3, overwrite=True)
    assert meta["order"] == "drawn with seed 3" and meta["seed_of_what_is_drawn"] == 3
    assert not meta["official_examples"] and "drawn by a seed" in meta["deviations"][0]
    assert origins(folder, "train800") != shuffled("train", [str(i) for i in range(200)])[:180]
    assert len(set(lists["train800"]) | set(lists["val200"])) == 200


def test_a_draft_of_other_examples_is_not_continued(cifar, tmp_path):
    draft = tmp_path / "built" / ".cifar.partial"
    (draft / "images" / "test").mkdir(parents=True)
    (draft / "images" / "test" / "000000.png").write_bytes(b"of another seed")
    (draft / ".identity").write_text("another")
    folder, _, _ = built("cifar", cifar, tmp_path)
    assert (folder / "images" / "test" / "000000.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / ".identity").exists()


# SVHN and Patch Camelyon: arrays of other libraries


def test_svhn_s_digits_are_its_labels(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root = tmp_path / "torchvision"
    root.mkdir()
    images = {"train": random_images(40, 32), "test": random_images(20, 32, seed=1)}
    for split, part in images.items():
        labels = np.array([[i % 10 + 1] for i in range(len(part))])  # 10 stands for the digit 0
        savemat(root / f"{split}_32x32.mat", {"X": part.transpose(1, 2, 3, 0), "y": labels})
    lists = {s: ["", f"{s}_32x32.mat", None] for s in ("train", "test")}
    monkeypatch.setattr(SVHN, "split_list", {**SVHN.split_list, **lists})
    folder, meta, lists = built("svhn", root, tmp_path)
    keys = origins(folder, "test")
    assert keys == shuffled("test", [str(i) for i in range(20)])
    assert [label for _, label in lists["test"]] == [(int(key) % 10 + 1) % 10 for key in keys]
    first = np.asarray(Image.open(folder / lists["test"][0][0]))
    assert np.array_equal(first, images["test"][int(keys[0])])
    assert any("no published list" in text for text in meta["deviations"])


class FakeH5(dict):
    """What torchvision asks of h5py.File: a context with named arrays."""

    def __init__(self, path):
        super().__init__(np.load(Path(path)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def camelyon(root, monkeypatch):
    from torchvision.datasets import PCAM

    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=FakeH5))
    (root / "pcam").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        files = PCAM._FILES[split]
        labels = np.arange(20).reshape(20, 1, 1, 1) % 2
        for kind, values in (("images", random_images(20, seed=number)), ("targets", labels)):
            with (root / "pcam" / files[kind][0]).open("wb") as opened:
                np.savez(opened, **{"x" if kind == "images" else "y": values})


def test_patch_camelyon_keeps_pixels_and_labels(tmp_path, monkeypatch):
    camelyon(tmp_path / "torchvision", monkeypatch)
    folder, _, lists = built("camelyon", tmp_path / "torchvision", tmp_path)
    keys = origins(folder, "val200")
    assert keys == shuffled("validation", [f"valid_{i}" for i in range(20)])
    rows = [int(key.split("_")[1]) for key in keys]
    assert [label for _, label in lists["val200"]] == [row % 2 for row in rows]
    pixels = np.asarray(Image.open(folder / lists["val200"][0][0]))
    assert np.array_equal(pixels, random_images(20, seed=1)[rows[0]])


def test_patch_camelyon_without_h5py_says_what_to_install(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "torchvision").mkdir()
    with refused("PCAM cannot be read: h5py is not found", r"pip install 'vprompt\[data\]'"):
        built("patch_camelyon", tmp_path / "torchvision", tmp_path)


# JPEG sources: bytes are copied


def flowers(root, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    home = root / "flowers-102"
    ids = {"trnid": range(1, 21), "valid": range(21, 31), "tstid": range(31, 51)}
    for number in range(1, 51):
        jpeg(home / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(home / "imagelabels.mat", {"labels": [[n % 5 + 1 for n in range(1, 51)]]})
    savemat(home / "setid.mat", {key: [list(value)] for key, value in ids.items()})
    plain = {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", plain)
    return home / "jpg"


def test_flowers_are_copied_byte_by_byte(tmp_path, monkeypatch):
    images = flowers(tmp_path / "torchvision", monkeypatch)
    folder, _, lists = built("flowers102", tmp_path / "torchvision", tmp_path)
    assert folder.name == "oxford_flowers102"
    keys = origins(folder, "val200")
    assert keys == shuffled("validation", [f"image_{n:05d}.jpg" for n in range(21, 31)])
    for (name, label), key in zip(lists["val200"], keys, strict=True):
        assert name.endswith(".jpg") and label == int(key[6:11]) % 5
        assert (folder / name).read_bytes() == (images / key).read_bytes()


def textures(root):
    home = root / "dtd" / "dtd"
    (home / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{number}{i}.jpg" for c in ("banded", "woven") for i in range(5)]
        (home / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
        for index, name in enumerate(names):
            jpeg(home / "images" / name, 100 * number + index)


def test_textures_have_keys_with_their_folder(tmp_path):
    textures(tmp_path / "torchvision")
    folder, _, lists = built("dtd", tmp_path / "torchvision", tmp_path)
    keys = [f"{c}/{c}_0{i}.jpg" for c in ("banded", "woven") for i in range(5)]
    assert origins(folder, "train800") == shuffled("train", keys)
    labels = [int(key.startswith("woven")) for key in origins(folder, "train800")]
    assert [label for _, label in lists["train800"]] == labels


def test_pets_come_from_their_lists(tmp_path):
    home = tmp_path / "torchvision" / "oxford-iiit-pet"
    (home / "annotations").mkdir(parents=True)
    names = [f"{breed}_{i}" for breed in ("Abyssinian", "pug") for i in range(10)]
    for index, name in enumerate(names):
        jpeg(home / "images" / f"{name}.jpg", index)
    lines = [f"{name} {1 + name.startswith('pug')} 1 1" for name in names]
    (home / "annotations" / "trainval.txt").write_text("\n".join(lines[::2]) + "\n")
    (home / "annotations" / "test.txt").write_text("\n".join(lines[1::2]) + "\n")
    folder, _, lists = built("pet", tmp_path / "torchvision", tmp_path)
    order = shuffled("train", [f"{name}.jpg" for name in names[::2]])
    assert origins(folder, "train800") == order[:8] and origins(folder, "val200") == order[8:]
    labels = [int(key.startswith("pug")) for key in origins(folder, "test")]
    assert [label for _, label in lists["test"]] == labels
    assert (folder / "classes.txt").read_text() == "0 Abyssinian\n1 Pug\n"


def test_eurosat_is_cut_60_20_20(tmp_path):
    home = tmp_path / "torchvision" / "eurosat" / "2750"
    for index, label in enumerate(("Forest", "River")):
        for number in range(1, 11):
            jpeg(home / label / f"{label}_{number}.jpg", 50 * index + number)
    folder, meta, lists = built("eurosat", tmp_path / "torchvision", tmp_path)
    keys = [f"{c}_{c}_{i}.jpg" for c in ("Forest", "River") for i in range(1, 11)]
    order = shuffled("train", keys)
    assert [origins(folder, s) for s in ("train800", "val200", "test")] == [
        order[:12],
        order[12:16],
        order[16:],
    ]
    assert [y for _, y in lists["test"]] == [int(k.startswith("River")) for k in order[16:]]
    assert meta["splits"]["test"]["from"] == "train[16:20]"


def test_caltech_takes_30_of_every_class_background_too(tmp_path):
    home = tmp_path / "torchvision" / "caltech101" / "101_ObjectCategories"
    for index, label in enumerate(("BACKGROUND_Google", "Faces", "ant")):
        for number in range(1, 36):
            jpeg(home / label / f"image_{number:04d}.jpg", 40 * index + number)
    (home / "BACKGROUND_Google" / "tmp").write_text("is there in the original too")
    folder, meta, lists = built("caltech101", tmp_path / "torchvision", tmp_path)
    assert (folder / "classes.txt").read_text() == "0 ant\n1 background_google\n2 faces\n"
    assert np.bincount([y for _, y in lists["train800val200"]]).tolist() == [30, 30, 30]
    assert np.bincount([y for _, y in lists["test"]]).tolist() == [5, 5, 5]
    assert not meta["official_examples"] and "30 training images" in meta["deviations"][0]
    assert meta["seed_of_what_is_drawn"] == 0


def sun(root):
    home = root / "SUN397"
    names = [f"a/abbey/sun_{i:02d}.jpg" for i in range(20)]
    names += [f"c/church/outdoor/sun_{i:02d}.jpg" for i in range(20, 40)]
    for index, name in enumerate(names):
        jpeg(home / name, index)
    jpeg(home / "a" / "abbey" / "sun_aophkoiosslinihb.jpg", 99)
    (home / "ClassName.txt").write_text("/a/abbey\n/c/church/outdoor\n")
    return home, [f"/{name}" for name in names]


def test_sun_is_drawn_70_10_20_and_leaves_out_what_cannot_be_decoded(tmp_path):
    sun(tmp_path / "torchvision")
    folder, meta, lists = built("sun397", tmp_path / "torchvision", tmp_path)
    assert [len(lists[s]) for s in ("train800", "val200", "test")] == [28, 4, 8]
    keys = [k for s in ("train800", "val200", "test") for k in origins(folder, s)]
    assert len(set(keys)) == 40 and not any("aophkoiosslinihb" in key for key in keys)
    assert any("70 : 10 : 20" in text for text in meta["deviations"])
    assert meta["seed_of_what_is_drawn"] == 0
    labels = [int("church" in key) for key in origins(folder, "test")]
    assert [label for _, label in lists["test"]] == labels


def test_sun_with_tfds_s_lists_is_cut_by_them(tmp_path):
    home, keys = sun(tmp_path / "torchvision")
    for short, part in (("tr", keys[:20]), ("va", keys[20:30]), ("te", keys[30:])):
        (home / f"sun397_tfds_{short}.txt").write_text("\n".join(part))
    folder, meta, _ = built("sun397", tmp_path / "torchvision", tmp_path)
    assert origins(folder, "train800") == shuffled("train", keys[:20])
    assert origins(folder, "test") == shuffled("test", keys[30:])
    assert meta["seed_of_what_is_drawn"] is None
    assert not any("70 : 10 : 20" in text for text in meta["deviations"])


# Scenes: labels from annotations


def clevr(root, depths):
    home = root / "clevr" / "CLEVR_v1.0"
    (home / "scenes").mkdir(parents=True)
    for split in ("train", "val"):
        scenes = []
        for number, depth in enumerate(depths):
            name = f"CLEVR_{split}_{number:06d}.png"
            (home / "images" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_images(1, seed=number)[0]).save(home / "images" / split / name)
            objects = [
                {"pixel_coords": [1.0, 2.0, depth + extra]} for extra in range(3 + number % 8)
            ]
            scenes.append({"image_filename": name, "objects": objects})
        text = json.dumps({"scenes": scenes})
        (home / "scenes" / f"CLEVR_{split}_scenes.json").write_text(text)
    return home


def test_clevr_counts_objects_and_measures_the_closest(tmp_path):
    depths = [7.0, 8.0, 8.2, 8.5, 8.7, 9.4, 9.8, 10.0, 10.1, 50.0]
    wanted = [0, 0, 1, 1, 2, 3, 4, 4, 5, 5]  # a distance on an edge belongs to the nearer bin
    home = clevr(tmp_path / "torchvision", depths)
    for name, label_of in (
        ("clevr_dist", lambda n: wanted[n]),
        ("clevr_count", lambda n: n % 8),
    ):
        folder, _, lists = built(name, tmp_path / "torchvision", tmp_path)
        keys = origins(folder, "test")
        assert keys == shuffled("validation", [f"CLEVR_val_{n:06d}.png" for n in range(10)])
        assert [y for _, y in lists["test"]] == [label_of(int(key[10:16])) for key in keys]
        file = home / "images" / "val" / keys[0]
        assert (folder / lists["test"][0][0]).read_bytes() == file.read_bytes()


VEHICLES = [  # type, depth and the label of an image with just these
    ([("Car", 8.0)], 0),
    ([("Car", 8.1), ("Pedestrian", 3.0)], 1),
    ([("Truck", 20.0), ("Van", 60.0)], 1),
    ([("Van", 20.5)], 2),
    ([("Pedestrian", 3.0), ("DontCare", -1000.0)], 3),
    ([], 3),
]


def kitti(root, count=60):
    raw = root / "Kitti" / "raw" / "training"
    for folder in ("image_2", "label_2"):
        (raw / folder).mkdir(parents=True)
    for number in range(count):
        Image.fromarray(random_images(1, seed=number)[0]).save(
            raw / "image_2" / f"{number:06d}.png"
        )
        things, _ = VEHICLES[number % len(VEHICLES)]
        lines = [f"{kind} 0 0 0 0 0 1 1 1 1 1 0 1 {depth} 0" for kind, depth in things]
        (raw / "label_2" / f"{number:06d}.txt").write_text("\n".join(lines) + "\n" * bool(lines))
    return raw.parent


def test_kitti_measures_the_closest_vehicle(tmp_path):
    kitti(tmp_path / "torchvision")
    folder, meta, lists = built("kitti", tmp_path / "torchvision", tmp_path)
    sizes = [len(lists[s]) for s in ("train800", "val200", "test")]
    assert sum(sizes) == 60 and sizes == [51, 3, 6]  # 6347 : 423 : 711
    for split in ("train800", "val200", "test"):
        labels = [VEHICLES[int(key[:6]) % len(VEHICLES)][1] for key in origins(folder, split)]
        assert [label for _, label in lists[split]] == labels
    assert "one by one and not by drive" in meta["deviations"][0]


def test_kitti_with_its_mapping_is_split_by_drive_as_tfds_does(tmp_path):
    raw = kitti(tmp_path / "torchvision")
    (raw / "mapping").mkdir()
    numbers = (np.random.default_rng(0).permutation(60) + 1).tolist()  # image -> line
    drives = [f"drive_{line % 20:02d}" for line in range(60)]
    lines = [f"2011_09_26 {drive} {line:010d}" for line, drive in enumerate(drives)]
    (raw / "mapping" / "train_mapping.txt").write_text("\n".join(lines) + "\n")
    (raw / "mapping" / "train_rand.txt").write_text(",".join(map(str, numbers)) + "\n")
    folder, meta, _ = built("kitti", tmp_path / "torchvision", tmp_path)
    # TFDS seeds NumPy's global generator with 123 and draws a tenth of the sorted drives, twice.
    state = np.random.get_state()
    try:
        np.random.seed(123)
        test = np.random.choice(sorted(set(drives)), 2, replace=False)
        val = np.random.choice(sorted(set(drives) - set(test)), 2, replace=False)
    finally:
        np.random.set_state(state)
    for split, part, chosen in (("test", "test", test), ("val200", "validation", val)):
        wanted = [f"{i:06d}.png" for i, n in enumerate(numbers) if drives[n - 1] in chosen]
        assert origins(folder, split) == shuffled(part, wanted) and len(wanted) == 6
    assert meta["seed_of_what_is_drawn"] is None
    assert not any("drive" in text for text in meta["deviations"])


# What is not there


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cifar", "cifar-100-python"),
        ("dtd", "dtd"),
        ("oxford_flowers102", "flowers-102"),
        ("oxford_iiit_pet", "oxford-iiit-pet"),
        ("svhn", "train_32x32.mat"),
        ("sun397", "SUN397"),
        ("eurosat", "eurosat"),
        ("clevr_count", "clevr"),
        ("kitti", "Kitti"),
        ("caltech101", "caltech101"),
    ],
)
def test_data_that_is_not_there_is_asked_for(tmp_path, refused, name, place):
    (tmp_path / "torchvision").mkdir()
    with refused("torchvision cannot open", f"should lie at .*{place}", "--download"):
        built(name, tmp_path / "torchvision", tmp_path)
    assert not (tmp_path / "built").exists()


def test_a_download_that_fails_says_how_to_do_without(tmp_path, refused, monkeypatch):
    from urllib.error import URLError

    from torchvision.datasets import dtd

    def fails(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(dtd, "download_and_extract_archive", fails)
    with refused("no route to host", "another machine", r"datasets\.DTD\(ROOT, download=True\)"):
        built("dtd", tmp_path / "torchvision", tmp_path, download=True)


def test_a_file_that_a_list_names_but_is_gone_stops_the_build(tmp_path, refused):
    textures(tmp_path / "torchvision")
    (tmp_path / "torchvision" / "dtd" / "dtd" / "images" / "woven" / "woven_20.jpg").unlink()
    with refused("DTD names .*woven_20.jpg, which is not there", "--download"):
        built("dtd", tmp_path / "torchvision", tmp_path)


def test_tasks_that_torchvision_does_not_have_are_listed(tmp_path, refused):
    with refused("no data set for DMLab", "cifar, caltech101, dtd"):
        built("dmlab", tmp_path, tmp_path)
    with refused("No VTAB task called 'cifer'", "Did you mean 'cifar'"):
        built("cifer", tmp_path, tmp_path)
    with refused("No folder at", "--download"):
        built("cifar", tmp_path / "nowhere", tmp_path)


def test_torchvision_that_keeps_its_paths_elsewhere_is_named(refused):
    from vprompt.data.source import hidden

    with refused("keeps no '_image_files' in its SimpleNamespace", "pip install torchvision"):
        hidden(SimpleNamespace(), "_image_files")


def test_the_command_builds_several_and_says_what_they_are(cifar, tmp_path, vprompt, fails):
    textures(cifar)
    output = tmp_path / "built"
    code, out, _ = vprompt(
        "data", "build", "cifar100", "dtd", "--root", cifar, "--output", output, "-q"
    )
    assert code == 0 and (output / "cifar").is_dir() and (output / "dtd").is_dir()
    assert "180 train800, 20 val200, 30 test images" in out and "not VTAB-1k's own" in out
    assert f"vprompt data verify {output}" in out
    words = ["data", "build", "pet", "dmlab", "--root", cifar, "--output", output]
    fails(*words, saying=["no data set for DMLab"])  # before the first is tried
