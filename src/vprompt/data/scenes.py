"""Scenes: Clevr and KITTI, whose labels are worked out from the objects in the picture."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vprompt.core.randomness import numpy_stream
from vprompt.data.source import Example, Part, Source, files, hidden, open_dataset

_CLEVR_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)  # of the closest object, in the scene's own unit
_KITTI_DISTANCES = (8.0, 20.0)  # of the closest vehicle, in metres
_KITTI_SIZES = {"test": 711, "validation": 423, "train": 6_347}  # what TFDS's split by drive gives
_NO_DRIVES = (
    "test images are drawn one by one and not by drive, so frames of one drive stand on both "
    "sides. For TFDS's split, unpack the folder `mapping` of KITTI's devkit_object.zip into "
    "Kitti/raw"
)


def clevr_count(root: Path, download: bool, seed: int) -> Source:
    """Return Clevr with the number of objects, 3 to 10."""
    del seed
    classes = tuple(f"{count} objects" for count in range(3, 11))
    return _clevr(root, download, classes, lambda objects: len(objects) - 3)


def clevr_distance(root: Path, download: bool, seed: int) -> Source:
    """Return Clevr with the distance of the closest object, in six bins."""
    del seed
    edges = (0.0, *_CLEVR_DISTANCES, 100.0)
    classes = tuple(f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges))
    return _clevr(root, download, classes, closest_object)


def closest_object(objects: Sequence[Any]) -> int:
    """Return which of six bins the distance of Clevr's closest object falls into."""
    closest = np.float32(min(thing["pixel_coords"][2] for thing in objects))
    return int(sum(edge < closest for edge in _CLEVR_DISTANCES))


def closest_vehicle(objects: Sequence[Any]) -> int:
    """Return 0 to 2 for the distance of KITTI's closest car, van or truck, and 3 without one."""
    vehicles = ("Car", "Van", "Truck")
    depths = [np.float32(thing["location"][2]) for thing in objects if thing["type"] in vehicles]
    return int(sum(edge < min(depths) for edge in _KITTI_DISTANCES)) if depths else 3


def kitti(root: Path, download: bool, seed: int) -> Source:
    """Return KITTI with the distance of the closest vehicle, in four bins."""
    data = open_dataset("Kitti", root, download, "Kitti")
    rows = {Path(path).name: row for row, path in enumerate(data.images)}
    mapping = root / "Kitti" / "raw" / "mapping"
    known = all((mapping / f"train_{word}.txt").is_file() for word in ("rand", "mapping"))
    named = _by_drive(mapping) if known else _drawn(sorted(rows), seed)

    def part(names: list[str]) -> Part:
        chosen = [rows[name] for name in names if name in rows]

        def fetch(row: int) -> Example:
            label = closest_vehicle(hidden(data, "_parse_target")(chosen[row]))
            return Path(data.images[chosen[row]]), label

        return Part(tuple(Path(data.images[row]).name for row in chosen), fetch)

    classes = ("up to 8 m", "8 to 20 m", "beyond 20 m", "no vehicle")
    parts = {name: part(names) for name, names in named.items()}
    return Source("Kitti", classes, parts, () if known else (_NO_DRIVES,), drawn=not known)


def _clevr(
    root: Path, download: bool, classes: tuple[str, ...], label_of: Callable[[list[Any]], int]
) -> Source:
    parts = {}
    for part, split in (("train", "train"), ("validation", "val")):
        data = open_dataset("CLEVRClassification", root, download, "clevr", split=split)
        scenes = hidden(data, "_data_folder") / "scenes" / f"CLEVR_{split}_scenes.json"
        found = json.loads(scenes.read_text("utf-8"))["scenes"]
        objects = {scene["image_filename"]: scene["objects"] for scene in found}
        paths = hidden(data, "_image_files")
        labels = [label_of(objects[path.name]) for path in paths]
        parts[part] = files(paths, labels, [path.name for path in paths])
    return Source("CLEVRClassification", classes, parts)


def _by_drive(mapping: Path) -> dict[str, list[str]]:
    """Split by drive as TFDS does: a tenth of the drives to test on, another to validate on."""
    lines = (mapping / "train_mapping.txt").read_text("utf-8").splitlines()
    numbers = (mapping / "train_rand.txt").read_text("utf-8").split(",")
    drives: dict[str, list[str]] = {}
    for image, number in enumerate(numbers):
        drives.setdefault(lines[int(number) - 1].split(" ")[1], []).append(f"{image:06d}.png")
    share = max(1, len(drives) // 10)
    random = np.random.RandomState(123)  # TFDS's generator and seed
    test = set(random.choice(sorted(drives), share, replace=False))
    val = set(random.choice(sorted(set(drives) - test), share, replace=False))
    named: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for drive, images in drives.items():
        named["test" if drive in test else "validation" if drive in val else "train"] += images
    return named


def _drawn(names: list[str], seed: int) -> dict[str, list[str]]:
    order = numpy_stream(seed, "kitti, parts").permutation(len(names))
    shares = np.cumsum(list(_KITTI_SIZES.values())) / sum(_KITTI_SIZES.values())
    edges = np.round(shares[:-1] * len(names)).astype(int)
    cut = zip(_KITTI_SIZES, np.split(order, edges), strict=True)
    return {part: [names[row] for row in sorted(rows)] for part, rows in cut}
