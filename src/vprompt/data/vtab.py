"""VTAB-1k: its 19 tasks in the order of every published table, with all names they go by.

Counts of test images are those of the full test sets. They agree in all public code but for
Caltech101, where the folder release holds one image more.

Reference: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", arXiv 1910.04867.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Group = Literal["Natural", "Specialized", "Structured"]
TRAIN, VAL = 800, 200  # images; the names of the lists say so too


@dataclass(frozen=True)
class Slice:
    """Where a split is cut from: a part of the TFDS data set, from `percent` of it onwards."""

    part: str
    percent: int = 0

    def __str__(self) -> str:
        """Write it as TFDS does."""
        return f"{self.part}[{self.percent}%:]" if self.percent else self.part


@dataclass(frozen=True)
class VtabTask:
    """One task: `id` is the folder of the shared copy, `test_images` the accepted test sizes.

    train800 is always the first 800 images of TFDS's `train`; val200 is the first 200 of `val`.
    `lossless` says that the published images are, so that a JPEG copy of them is not the original.
    """

    id: str
    title: str
    group: Group
    classes: int
    test_images: tuple[int, ...]
    val: Slice
    test: Slice = Slice("test")
    aliases: tuple[str, ...] = ()
    lossless: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the id and all aliases."""
        return (self.id, *self.aliases)


_VALIDATION, _TRAIN90, _TRAIN80, _TRAIN60 = (
    Slice("validation"),
    Slice("train", 90),
    Slice("train", 80),
    Slice("train", 60),
)

TASKS = (
    VtabTask(
        "cifar",
        "CIFAR-100",
        "Natural",
        100,
        (10_000,),
        _TRAIN90,
        aliases=("cifar100", "cifar(num_classes=100)", "vtab/cifar100"),
        lossless=True,
    ),
    VtabTask("caltech101", "Caltech101", "Natural", 102, (6_084, 6_085), _TRAIN90),
    VtabTask("dtd", "DTD", "Natural", 47, (1_880,), _VALIDATION),
    VtabTask(
        "oxford_flowers102",
        "Flowers102",
        "Natural",
        102,
        (6_149,),
        _VALIDATION,
        aliases=("flowers102", "vtab/flowers"),
    ),
    VtabTask(
        "oxford_iiit_pet",
        "Pets",
        "Natural",
        37,
        (3_669,),
        _TRAIN80,
        aliases=("oxford_pet", "pet", "vtab/pets"),
    ),
    VtabTask("svhn", "SVHN", "Natural", 10, (26_032,), _TRAIN90, lossless=True),
    VtabTask("sun397", "Sun397", "Natural", 397, (21_750,), _VALIDATION),
    VtabTask(
        "patch_camelyon",
        "Patch Camelyon",
        "Specialized",
        2,
        (32_768,),
        _VALIDATION,
        aliases=("camelyon", "vtab/pcam"),
        lossless=True,
    ),
    VtabTask("eurosat", "EuroSAT", "Specialized", 10, (5_400,), _TRAIN60, _TRAIN80),
    VtabTask("resisc45", "Resisc45", "Specialized", 45, (6_300,), _TRAIN60, _TRAIN80),
    VtabTask(
        "diabetic_retinopathy",
        "Retinopathy",
        "Specialized",
        5,
        (42_670,),
        _VALIDATION,
        aliases=('diabetic_retinopathy(config="btgraham-300")', "retinopathy"),
    ),
    VtabTask(
        "clevr_count",
        "Clevr/count",
        "Structured",
        8,
        (15_000,),
        _TRAIN90,
        _VALIDATION,
        aliases=('clevr(task="count_all")', "vtab/clevr_count_all"),
        lossless=True,
    ),
    VtabTask(
        "clevr_dist",
        "Clevr/distance",
        "Structured",
        6,
        (15_000,),
        _TRAIN90,
        _VALIDATION,
        aliases=('clevr(task="closest_object_distance")', "clevr_distance"),
        lossless=True,
    ),
    VtabTask("dmlab", "DMLab", "Structured", 6, (22_735,), _VALIDATION),
    VtabTask(
        "kitti",
        "KITTI/distance",
        "Structured",
        4,
        (711,),
        _VALIDATION,
        aliases=('kitti(task="closest_vehicle_distance")',),
        lossless=True,
    ),
    VtabTask(
        "dsprites_loc",
        "dSprites/location",
        "Structured",
        16,
        (73_728,),
        _TRAIN80,
        _TRAIN90,
        aliases=(
            'dsprites(predicted_attribute="label_x_position",num_classes=16)',
            "dsprites_position",
        ),
        lossless=True,
    ),
    VtabTask(
        "dsprites_ori",
        "dSprites/orientation",
        "Structured",
        16,
        (73_728,),
        _TRAIN80,
        _TRAIN90,
        aliases=(
            'dsprites(predicted_attribute="label_orientation",num_classes=16)',
            "dsprites_orientation",
        ),
        lossless=True,
    ),
    VtabTask(
        "smallnorb_azi",
        "SmallNORB/azimuth",
        "Structured",
        18,
        (12_150,),
        Slice("test"),
        Slice("test", 50),
        aliases=('smallnorb(predicted_attribute="label_azimuth")', "smallnorb_azimuth"),
        lossless=True,
    ),
    VtabTask(
        "smallnorb_ele",
        "SmallNORB/elevation",
        "Structured",
        9,
        (12_150,),
        Slice("test"),
        Slice("test", 50),
        aliases=('smallnorb(predicted_attribute="label_elevation")', "smallnorb_elevation"),
        lossless=True,
    ),
)
IDS = tuple(task.id for task in TASKS)
LOSSY = (
    "the images are JPEG, but {title} is published without loss: users of such a copy of CIFAR-100 "
    "report several points less in every method (the cause is not proven). Compare with results on "
    "the same copy only"
)


def find(name: str) -> VtabTask | None:
    """Return the task that goes by a name, its id or an alias, in small letters or large.

    Titles are no names: a folder called `pets` is more likely somebody's own.
    """
    wanted = name.casefold()
    return next((task for task in TASKS if wanted in map(str.casefold, task.names)), None)


def find_folder(path: Path) -> Path | None:
    """Return the folder at `path`, or one beside it under another name of the same task.

    `DIR/cifar100` finds `DIR/cifar`. An alias may span two steps, as `DIR/vtab/cifar100` does.
    """
    if path.is_dir():
        return path
    for root, name in ((path.parent, path.name), (path.parent.parent, "/".join(path.parts[-2:]))):
        task = find(name)
        for folder in (root / other for other in (task.names if task else ())):
            if folder.is_dir():
                return folder
    return None


def in_order(names: Sequence[str]) -> list[str]:
    """Sort names of tasks as the published tables do; others follow in their own order."""
    places = {task_id: place for place, task_id in enumerate(IDS)}
    tasks = [find(name) for name in names]
    keys = [places[task.id] if task else len(IDS) for task in tasks]
    return [names[row] for row in sorted(range(len(names)), key=lambda row: keys[row])]
