"""VTAB: a folder in the VTAB-1k format, with `train800.txt`, `val200.txt` and `test.txt`.

Reference: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", arXiv 1910.04867.
"""

import os
from pathlib import Path

from vprompt.errors import VPromptError
from vprompt.registry import suggest
from vprompt.task import SealedSplit, Split, Task

ALIASES = {
    "cifar": ("cifar100", "cifar(num_classes=100)", "vtab/cifar100"),
    "caltech101": (),
    "dtd": (),
    "oxford_flowers102": ("flowers102", "vtab/flowers"),
    "oxford_iiit_pet": ("oxford_pet", "pet", "vtab/pets"),
    "svhn": (),
    "sun397": (),
    "patch_camelyon": ("camelyon", "vtab/pcam"),
    "eurosat": (),
    "resisc45": (),
    "diabetic_retinopathy": ('diabetic_retinopathy(config="btgraham-300")', "retinopathy"),
    "clevr_count": ('clevr(task="count_all")', "vtab/clevr_count_all"),
    "clevr_dist": ('clevr(task="closest_object_distance")', "clevr_distance"),
    "dmlab": (),
    "kitti": ('kitti(task="closest_vehicle_distance")',),
    "dsprites_loc": (
        'dsprites(predicted_attribute="label_x_position",num_classes=16)',
        "dsprites_position",
    ),
    "dsprites_ori": (
        'dsprites(predicted_attribute="label_orientation",num_classes=16)',
        "dsprites_orientation",
    ),
    "smallnorb_azi": (
        'smallnorb(predicted_attribute="label_azimuth")',
        "smallnorb_azimuth",
    ),
    "smallnorb_ele": (
        'smallnorb(predicted_attribute="label_elevation")',
        "smallnorb_elevation",
    ),
}


def load(*, root: str, name: str = "", prefix: str = "", allow_absent: bool = False) -> Task:
    """Read `root/name`, or `root` itself without a name.

    `name` may be a VTAB task under any of its known names. `prefix` chooses another task on the
    same images: `object` reads `object_train800.txt` and so on.
    """
    folder = _find_folder(Path(root), name)
    start = f"{prefix}_" if prefix else ""
    lists = {
        split: _read_list(folder, f"{start}{split}.txt")
        for split in ("train800", "val200", "test")
        if (folder / f"{start}{split}.txt").is_file()
    }
    if "train800" not in lists:
        found = sorted(p.name for p in folder.glob("*train800.txt")) or ["none"]
        raise VPromptError(
            f"{folder} has no {start}train800.txt. Lists of training images there: "
            f"{', '.join(found)}."
        )
    classes = _class_names(folder, start, lists)
    splits = {name: Split(name, *parts) for name, parts in lists.items()}
    return Task(
        name=folder.name + (f":{prefix}" if prefix else ""),
        classes=classes,
        train=splits["train800"],
        val=splits.get("val200"),
        test=SealedSplit(splits["test"]) if "test" in splits else None,
        facts={"source": "vtab-1k folder", "folder": folder.name, "prefix": prefix},
        allow_absent=allow_absent,
    )


def _find_folder(root: Path, name: str) -> Path:
    if not name:
        candidates = [root]
    else:
        canonical = next((k for k, v in ALIASES.items() if name == k or name in v), name)
        candidates = [root / n for n in (name, canonical, *ALIASES.get(canonical, ()))]
    for folder in candidates:
        if folder.is_dir():
            return folder
    known = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    raise VPromptError(f"No folder for the task {name or str(root)!r}.{suggest(name, known)}")


def _read_list(folder: Path, file: str) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    paths, labels = [], []
    for number, line in enumerate((folder / file).read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ")  # file names may hold spaces
        if not name or not label.isdecimal():
            raise VPromptError(
                f"{folder / file}, line {number}: expected `relative/path label`, got {line!r}."
            )
        path = folder / name
        if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
            raise VPromptError(f"{folder / file}, line {number}: {name!r} lies outside {folder}.")
        paths.append(path)
        labels.append(int(label))
    if not paths:
        raise VPromptError(f"{folder / file} lists no images.")
    return tuple(paths), tuple(labels)


def _class_names(
    folder: Path, start: str, lists: dict[str, tuple[tuple[Path, ...], tuple[int, ...]]]
) -> tuple[str, ...]:
    count = 1 + max(max(labels) for _, labels in lists.values())
    file = folder / f"{start}classes.txt"
    if not file.is_file():
        return tuple(str(index) for index in range(count))
    names = {}
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        number, _, name = line.strip().partition(" ")
        if number and not number.isdecimal():
            raise VPromptError(f"{file}: expected `number name` in every line, got {line!r}.")
        if number:
            names[int(number)] = name
    return tuple(
        names.get(index, str(index)) for index in range(max(count, 1 + max(names, default=-1)))
    )
