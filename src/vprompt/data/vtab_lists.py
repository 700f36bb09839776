"""VTAB lists: the text files of a VTAB-1k folder, its splits and the names of its classes."""

import os
from collections.abc import Mapping
from pathlib import Path

from vprompt.core.errors import VPromptError
from vprompt.data.vtab import VtabTask

SPLITS = ("train800", "val200", "test")
Listed = tuple[tuple[Path, ...], tuple[int, ...]]  # images and labels


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
    folder: Path, start: str, lists: Mapping[str, Listed], known: VtabTask | None = None
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
