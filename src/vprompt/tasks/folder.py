"""Folder: a folder of class folders, cut into splits here or by its own train and test folders."""

import math
from collections.abc import Sequence
from pathlib import Path

from vprompt.errors import VPromptError
from vprompt.images import SUFFIXES
from vprompt.task import SealedSplit, Split, Task, split_by_class

_VALIDATION = ("val", "valid", "validation")
_VAL_SHARE = 0.2  # of train, where a folder has train and test but nothing to validate on


def load(
    *,
    root: str,
    seed: int = 0,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    allow_absent: bool = False,
) -> Task:
    """Read `root/<class>/...` or `root/train/<class>/...`; the folder names are the class names.

    Folders named train and test, and perhaps val, are taken as the splits; without val, 20 % of
    train becomes val, class by class. Otherwise the images are cut into `fractions` (train, val,
    test), class by class. Both draws depend on `seed` and on the sorted file names alone.
    """
    folder = Path(root).expanduser()
    _check_fractions(fractions)
    if not folder.is_dir():
        raise VPromptError(f"No folder at {folder}. Give `root` a folder that holds class folders.")
    found = _split_folders(folder)
    if found:
        classes, splits, how = _read_splits(found, seed)
    else:
        classes, everything = _read_classes([folder])
        splits = _cut(everything[0], classes, fractions, seed, allow_absent)
        how = f"cut into {', '.join(f'{share:g}' for share in fractions)} by class"
    return Task(
        name=folder.resolve().name,
        classes=classes,
        train=splits["train"],
        val=splits.get("val"),
        test=SealedSplit(splits["test"]) if "test" in splits else None,
        facts={
            "source": "folder of class folders",
            "folder": folder.resolve().name,
            "splits": how,
            "split_seed": seed,
            "sizes": {name: len(split) for name, split in splits.items()},
        },
        allow_absent=allow_absent,
    )


def _check_fractions(fractions: Sequence[float]) -> None:
    if (
        len(fractions) != 3
        or min(fractions) < 0
        or fractions[0] == 0
        or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6)
    ):
        raise VPromptError(
            f"fractions are {tuple(fractions)}, but train, val and test need three shares that sum "
            "to 1, the first above 0. Write for example `fractions=(0.64, 0.16, 0.2)`."
        )


def _split_folders(folder: Path) -> dict[str, Path]:
    # Train beside val alone counts too: they would otherwise pass for two classes.
    named = {path.name.lower(): path for path in _folders(folder)}
    validation = [named[word] for word in _VALIDATION if word in named]
    if len(validation) > 1:
        listing = ", ".join(path.name for path in validation)
        raise VPromptError(f"{folder} has several validation folders: {listing}. Keep one of them.")
    if "train" not in named or not (validation or "test" in named):
        return {}
    found = {"train": named["train"]}
    if validation:
        found["val"] = validation[0]
    if "test" in named:
        found["test"] = named["test"]
    return found


def _read_splits(
    found: dict[str, Path], seed: int
) -> tuple[tuple[str, ...], dict[str, Split], str]:
    classes, contents = _read_classes(list(found.values()))
    splits = {
        name: Split(name, paths, labels)
        for name, (paths, labels) in zip(found, contents, strict=True)
    }
    if "val" in splits:
        return classes, splits, "given by folders"
    train = splits["train"]
    rows = split_by_class(train.labels, (1 - _VAL_SHARE, _VAL_SHARE), seed)
    splits["train"] = train.subset(rows[0], "train")
    if rows[1]:
        splits["val"] = train.subset(rows[1], "val")
    return classes, splits, f"given by folders; val is {_VAL_SHARE:.0%} of train, by class"


def _cut(
    everything: tuple[tuple[Path, ...], tuple[int, ...]],
    classes: tuple[str, ...],
    fractions: Sequence[float],
    seed: int,
    allow_absent: bool,
) -> dict[str, Split]:
    paths, labels = everything
    single = [name for index, name in enumerate(classes) if labels.count(index) == 1]
    if single and not allow_absent:
        raise VPromptError(
            f"Class folders with one image only: {', '.join(map(repr, single))}. One image cannot "
            "be both learned from and tested on; add images or remove the folders, or add "
            "--allow-absent-classes."
        )
    whole = Split("all", paths, labels)
    parts = zip(("train", "val", "test"), split_by_class(labels, fractions, seed), strict=True)
    return {name: whole.subset(rows, name) for name, rows in parts if rows or name == "train"}


def _read_classes(
    folders: Sequence[Path],
) -> tuple[tuple[str, ...], list[tuple[tuple[Path, ...], tuple[int, ...]]]]:
    for folder in folders:
        if not _folders(folder):
            raise VPromptError(
                f"{folder} has no class folders. Put the images of each class into a folder of "
                f"its own: {folder.name}/<class>/<image>."
            )
    classes = tuple(sorted({path.name for folder in folders for path in _folders(folder)}))
    contents = []
    for folder in folders:
        paths: list[Path] = []
        labels: list[int] = []
        for path in _folders(folder):
            images = _images(path)
            paths.extend(images)
            labels.extend([classes.index(path.name)] * len(images))
        contents.append((tuple(paths), tuple(labels)))
    return classes, contents


def _folders(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.name)


def _images(folder: Path) -> list[Path]:
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        raise VPromptError(
            f"The class folder {folder} holds no image. Remove it, or add files that end in one "
            f"of: {', '.join(SUFFIXES)}."
        )
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
