"""VTAB: a folder in the VTAB-1k format, with `train800.txt`, `val200.txt` and `test.txt`.

Reference: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", arXiv 1910.04867.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from vprompt import vtab
from vprompt.census import Reading
from vprompt.errors import VPromptError
from vprompt.registry import suggest
from vprompt.task import SealedSplit, Split, Task

SPLITS = ("train800", "val200", "test")
Listed = tuple[tuple[Path, ...], tuple[int, ...]]  # images and labels


def load(*, root: str, name: str = "", prefix: str = "", allow_absent: bool = False) -> Task:
    """Read `root/name`, or `root` itself without a name.

    `name` may be a VTAB task under any of its known names. `prefix` chooses another task on the
    same images: `object` reads `object_train800.txt` and so on.
    """
    folder = _find_folder(Path(root), name)
    start = f"{prefix}_" if prefix else ""
    lists = {
        split: read_list(folder, f"{start}{split}.txt")
        for split in SPLITS
        if (folder / f"{start}{split}.txt").is_file()
    }
    if "train800" not in lists:
        found = sorted(p.name for p in folder.glob("*train800.txt")) or ["none"]
        raise VPromptError(
            f"{folder} has no {start}train800.txt. Lists of training images there: "
            f"{', '.join(found)}."
        )
    known = None if prefix else vtab.find(folder.name)
    classes = class_names(folder, start, lists, known)
    splits = {name: Split(name, *parts) for name, parts in lists.items()}
    return Task(
        name=folder.name + (f":{prefix}" if prefix else ""),
        classes=classes,
        train=splits["train800"],
        val=splits.get("val200"),
        test=SealedSplit(splits["test"]) if "test" in splits else None,
        facts={
            "source": "vtab-1k folder",
            "folder": folder.name,
            "prefix": prefix,
            **_known_facts(known, lists["train800"]),
        },
        allow_absent=allow_absent,
        reading=Reading(f"as listed in {', '.join(f'{start}{split}.txt' for split in lists)}"),
    )


def read_list(folder: Path, file: str) -> Listed:
    """Read lines of `relative/path label`; a line that cannot be read is named."""
    paths, labels = [], []
    for number, line in enumerate((folder / file).read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ")  # file names may hold spaces
        if not name or not label.isdecimal():
            raise VPromptError(
                f"{folder / file}, line {number}: expected `relative/path label`, got {line!r}."
            )
        if "\\" in name and not (folder / name).is_file():
            name = name.replace("\\", "/")  # written on Windows
        path = folder / name
        if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
            raise VPromptError(f"{folder / file}, line {number}: {name!r} lies outside {folder}.")
        paths.append(path)
        labels.append(int(label))
    if not paths:
        raise VPromptError(f"{folder / file} lists no images.")
    return tuple(paths), tuple(labels)


def class_names(
    folder: Path, start: str, lists: Mapping[str, Listed], known: vtab.VtabTask | None = None
) -> tuple[str, ...]:
    """Return the names in `classes.txt`; a class without one is called by its number.

    A VTAB task has as many classes as it was published with, even if no list shows them all.
    """
    count = 1 + max(max(labels) for _, labels in lists.values())
    file = folder / f"{start}classes.txt"
    if not file.is_file():
        return tuple(str(index) for index in range(max(count, known.classes if known else 0)))
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


def _find_folder(root: Path, name: str) -> Path:
    folder = vtab.find_folder(root / name if name else root)
    if folder is not None:
        return folder
    known = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    raise VPromptError(f"No folder for the task {name or str(root)!r}.{suggest(name, known)}")


def _known_facts(known: vtab.VtabTask | None, train: Listed) -> dict[str, str]:
    """Say which VTAB task it is, and warn of a copy that has lost something on the way."""
    if known is None:
        return {}
    facts = {"vtab": known.id}
    if known.lossless and train[0][0].suffix.lower() in (".jpg", ".jpeg"):
        facts["warning"] = vtab.LOSSY.format(title=known.title)
    return facts
