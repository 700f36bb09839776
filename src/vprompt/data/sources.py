"""Sources: torchvision's data sets as VTAB needs them, with TFDS's parts, keys and labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import numpy_stream
from vprompt.core.registry import suggest
from vprompt.data import scenes
from vprompt.data.source import Part, Source, arrays, files, hidden, open_dataset
from vprompt.data.vtab import IDS, VtabTask, find

Opener = Callable[[Path, bool, int], Source]  # root, download, seed

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # TFDS's and torchvision's words
_CALTECH_TRAIN = 30  # images per class; all others are for testing
_SUN_BROKEN = ("sun_aophkoiosslinihb.jpg", "sun_bhenjvsvrtumjuri.jpg")  # cannot be decoded
_SUN_LISTS = {"train": "tr", "validation": "va", "test": "te"}


def open_source(task: VtabTask, root: Path, *, download: bool = False, seed: int = 0) -> Source:
    """Return the data set of a task from torchvision's `root`.

    `seed` is for what cannot be known of TFDS's parts, and then `drawn` is set.
    """
    if not root.is_dir() and not download:
        raise VPromptError(
            f"No folder at {root}. --root names the folder that torchvision downloads into; add "
            "--download to create and fill it."
        )
    return SOURCES[task.id](root, download, seed)


def named_task(name: str) -> VtabTask:
    """Return the VTAB task of a name, or say which ones torchvision has."""
    task = find(name)
    if task is None:
        raise VPromptError(f"No VTAB task called {name!r}.{suggest(name, IDS)}")
    if task.id not in SOURCES:
        raise VPromptError(
            f"torchvision has no data set for {task.title}. It has those of: "
            f"{', '.join(SOURCES)}. For the others, bring a folder in the VTAB-1k format."
        )
    return task


def _cifar(root: Path, download: bool, seed: int) -> Source:
    del seed
    sets = {
        part: open_dataset("CIFAR100", root, download, "cifar-100-python", train=part == "train")
        for part in ("train", "test")
    }
    parts = {part: arrays(data.data, data.targets) for part, data in sets.items()}
    return Source("CIFAR100", tuple(sets["train"].classes), parts)


def _svhn(root: Path, download: bool, seed: int) -> Source:
    del seed
    parts = {}
    for part in ("train", "test"):
        data = open_dataset("SVHN", root, download, f"{part}_32x32.mat", split=part)
        parts[part] = arrays(data.data.transpose(0, 2, 3, 1), data.labels.tolist())
    note = "no published list confirms the examples; their order follows TFDS's rule for the set"
    return Source("SVHN", tuple("0123456789"), parts, (note,))


def _listed(
    name: str,
    place: str,
    splits: dict[str, str],
    *,
    images: str = "_image_files",
    key: Callable[[Path], str] = lambda path: path.name,
) -> Opener:
    """Return the opener of a data set that comes with lists of files for its splits."""

    def opener(root: Path, download: bool, seed: int) -> Source:
        del seed
        parts, classes = {}, ()
        for part, split in splits.items():
            data = open_dataset(name, root, download, place, split=split)
            paths, classes = hidden(data, images), tuple(data.classes)
            parts[part] = files(paths, hidden(data, "_labels"), [key(path) for path in paths])
        return Source(name, classes, parts)

    return opener


def _eurosat(root: Path, download: bool, seed: int) -> Source:
    del seed
    data = open_dataset("EuroSAT", root, download, "eurosat")
    paths, labels = zip(*data.samples, strict=True)
    names = [Path(path).name for path in paths]
    keys = [f"{name.partition('_')[0]}_{name}" for name in names]
    return Source("EuroSAT", tuple(data.classes), {"train": files(paths, labels, keys)})


def _pcam(root: Path, download: bool, seed: int) -> Source:
    del seed
    parts = {}
    for part, split, word in (
        ("train", "train", "train"),
        ("validation", "val", "valid"),
        ("test", "test", "test"),
    ):
        data = open_dataset("PCAM", root, download, "pcam", split=split)
        parts[part] = Part(tuple(f"{word}_{row}" for row in range(len(data))), data.__getitem__)
    return Source("PCAM", ("no tumour", "tumour"), parts)


def _caltech(root: Path, download: bool, seed: int) -> Source:
    open_dataset("Caltech101", root, download, "caltech101")
    home = root / "caltech101" / "101_ObjectCategories"
    folders = sorted((p for p in home.iterdir() if p.is_dir()), key=lambda p: p.name.lower())
    rng = numpy_stream(seed, "caltech101, 30 images per class")
    found: dict[str, tuple[list[Path], list[int]]] = {"train": ([], []), "test": ([], [])}
    for label, folder in enumerate(folders):
        paths = sorted(folder.glob("*.jpg"))
        kept = set(rng.permutation(len(paths))[:_CALTECH_TRAIN].tolist())
        for row, path in enumerate(paths):
            images, labels = found["train" if row in kept else "test"]
            images.append(path)
            labels.append(label)
    parts = {
        part: files(paths, labels, [f"{path.parent.name}/{path.name}" for path in paths])
        for part, (paths, labels) in found.items()
    }
    note = (
        f"the {_CALTECH_TRAIN} training images of each class are drawn here: TFDS's draw depends "
        "on the order in which its file system listed the files"
    )
    return Source("Caltech101", tuple(p.name.lower() for p in folders), parts, (note,), drawn=True)


def _sun(root: Path, download: bool, seed: int) -> Source:
    data = open_dataset("SUN397", root, download, "SUN397")
    home = root / "SUN397"
    labels = dict(zip(hidden(data, "_image_files"), hidden(data, "_labels"), strict=True))
    paths = {f"/{p.relative_to(home).as_posix()}": p for p in labels if p.name not in _SUN_BROKEN}
    notes = ["the original files are copied; TFDS shrinks them to 120,000 pixels and encodes again"]
    lists = {part: home / f"sun397_tfds_{short}.txt" for part, short in _SUN_LISTS.items()}
    drawn = not all(path.is_file() for path in lists.values())
    if drawn:
        notes.append(
            "70 : 10 : 20 per cent are drawn here for training, validation and test. For TFDS's "
            f"parts, put its {', '.join(path.name for path in lists.values())} into {home.name}"
        )
        keys = sorted(paths)
        order = numpy_stream(seed, "sun397, parts").permutation(len(keys))
        edges = np.round(np.array([0.7, 0.8]) * len(keys)).astype(int)
        cut = dict(zip(_SUN_LISTS, np.split(order, edges), strict=True))
        named = {part: [keys[row] for row in sorted(rows)] for part, rows in cut.items()}
    else:
        named = {
            part: [key for key in path.read_text("utf-8").split() if key in paths]
            for part, path in lists.items()
        }
    parts = {
        part: files([paths[k] for k in keys], [labels[paths[k]] for k in keys], keys)
        for part, keys in named.items()
    }
    return Source("SUN397", tuple(data.classes), parts, tuple(notes), drawn)


SOURCES: dict[str, Opener] = {
    "cifar": _cifar,
    "caltech101": _caltech,
    "dtd": _listed("DTD", "dtd", _SPLITS, key=lambda path: f"{path.parent.name}/{path.name}"),
    "oxford_flowers102": _listed("Flowers102", "flowers-102", _SPLITS),
    "oxford_iiit_pet": _listed(
        "OxfordIIITPet",
        "oxford-iiit-pet",
        {"train": "trainval", "test": "test"},
        images="_images",
    ),
    "svhn": _svhn,
    "sun397": _sun,
    "patch_camelyon": _pcam,
    "eurosat": _eurosat,
    "clevr_count": scenes.clevr_count,
    "clevr_dist": scenes.clevr_distance,
    "kitti": scenes.kitti,
}
