"""Folder: a folder of class folders, cut into splits here or by its own train and test folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vprompt.core.errors import VPromptError
from vprompt.data import finding
from vprompt.data.census import Reading
from vprompt.data.task import SealedSplit, Split, Task
from vprompt.tasks._cutting import FRACTIONS, check_fractions, cut, given
from vprompt.tasks._cutting import all_test as as_test
from vprompt.tasks._layout import Layout, class_order, folders_of, read_layout

_TWICE = "reached twice by links"


def load(
    *,
    root: str,
    split_seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    fold: str = "",
    allow_absent: bool = False,
    all_test: bool = False,
) -> Task:
    """Read `root/<class>/...` or `root/train/<class>/...`; the folder names are the class names.

    Folders named train and test, and perhaps val, in any usual spelling, are taken as the splits;
    without val, 20 % of train becomes val, class by class. Otherwise the images are cut into
    `fractions` (train, val, test), class by class. `fold`, such as `'2/5'`, takes the second of
    five parts for test instead, so that over all folds every image is tested on once. The draws
    depend on `split_seed` and on the sorted file names alone. With `all_test` nothing is cut: all
    images are test images, unless the folder has a test folder beside others.
    """
    folder = Path(root).expanduser()
    check_fractions(fractions)
    if not folder.is_dir():
        raise VPromptError(f"No folder at {folder}. Give `root` a folder that holds class folders.")
    found = finding.explore(folder)
    layout = read_layout(found, measured=all_test)
    classes = class_order(layout)
    reading = Reading("", (*found.all_left_out(), *layout.left_out), found.all_links())
    whole, twice = _read(layout, classes)
    reading = reading.without(_TWICE, twice).noting(*layout.notes)
    if "all" not in whole:
        made = given(whole, split_seed, "given by folders", layout.how)
    elif all_test:
        made = as_test(whole["all"])
    else:
        made = cut(
            whole["all"],
            classes,
            fractions,
            split_seed,
            allow_absent=allow_absent,
            where=folder,
            fold=fold,
        )
    return Task(
        name=folder.resolve().name,
        classes=classes,
        train=made.splits.get("train", Split("train", (), ())),
        val=made.splits.get("val"),
        test=SealedSplit(made.splits["test"]) if "test" in made.splits else None,
        facts={
            "source": "folder of class folders",
            "folder": folder.resolve().name,
            "splits": made.how,
            "split_seed": split_seed,
            "sizes": {name: len(split) for name, split in made.splits.items()},
        },
        allow_absent=allow_absent,
        only_test=all_test,
        reading=replace(reading, cut=made.words),
    )


def _read(layout: Layout, classes: tuple[str, ...]) -> tuple[dict[str, Split], list[str]]:
    """Return the images of every split, and those that links reach a second time.

    Raises VPromptError where a second time means another class or split: then one image would be
    two things at once, or be tested on after it was learned from.
    """
    seen: dict[Path, tuple[Path, str, int]] = {}
    whole: dict[str, Split] = {}
    twice: list[str] = []
    for word, by_class in layout.splits.items():
        paths: list[Path] = []
        labels: list[int] = []
        for label, folder in folders_of(classes, by_class):
            places = folder.places()
            for path in folder.all_images():
                first, split, known = seen.setdefault(places[path], (path, word, label))
                if first is path:
                    paths.append(path)
                    labels.append(label)
                elif (split, known) == (word, label):
                    twice.append(path.name)
                else:
                    raise VPromptError(
                        f"{first} and {path} are one file, reached by a link, but stand for "
                        "different classes or splits. Remove one of them."
                    )
        whole[word] = Split(word, tuple(paths), tuple(labels))
    return whole, twice
