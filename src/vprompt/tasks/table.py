"""Table: a list of image files with their labels, and perhaps their splits: CSV, JSON or text."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest
from vprompt.data import lists
from vprompt.data.census import Reading
from vprompt.data.lists import SPLITS, Listing
from vprompt.data.targets import CLASS, NUMBER, SEVERAL, Label
from vprompt.data.task import SealedSplit, Split, Task
from vprompt.tasks import _labels
from vprompt.tasks._cutting import FRACTIONS, check_fractions, cut, given
from vprompt.tasks._cutting import all_test as as_test

_ORDER = ("train", "val", "test")
_GAPS = ("nan", "none", "null", "na", "n/a", "<na>")  # what programs write where there is nothing
_WHOLE_NUMBER = re.compile(r"([+-]?(?:0|[1-9][0-9]*))(?:\.0*)?")


def load(
    *,
    file: str,
    root: str = "",
    image_column: str = "image",
    label_column: str = "label",
    split_column: str = "split",
    val: str = "",
    test: str = "",
    split_seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    fold: str = "",
    target: str = "",
    label_separator: str = "",
    allow_absent: bool = False,
    all_test: bool = False,
) -> Task:
    """Read one image per row; paths are relative to `root`, or else to the table's folder.

    `target` is `class`, `several` or `number`; left out, it is `class`, or a question where the
    labels look like something else. Several classes of an image stand in one cell with `|` or `;`
    between them, or what `label_separator` is, or in several rows of one image; `[]` is none.
    Class names are the labels, sorted (as numbers where all are integers); 1 and 1.0 are one.
    Without a split column the rows are cut into `fractions` (train, val, test), class by class, by
    `split_seed`, or into a `fold` such as `'2/5'`, the second of five; with one that names no val,
    20 % of train becomes val. `val` and `test` are lists of their own, beside `file`. A default
    column name may also be another of `lists.NAMES`. With `all_test` nothing is cut: all rows are
    test images, unless the table names splits.
    """
    check_fractions(fractions)
    table = Path(file).expanduser()
    named = {"train": str(table), "val": val, "test": test}
    listings = {word: lists.read(Path(each).expanduser()) for word, each in named.items() if each}
    columns = _columns(listings["train"], image_column, label_column, split_column)
    folder = Path(root).expanduser() if root else None
    paths, cells, words = [], [], []
    for word, listing in listings.items():
        own = columns if word == "train" else _columns(listing, image_column, label_column, "split")
        paths += listing.images(own["image"], folder)
        cells += [_labels.cell(listing, row, own["label"], target) for row in listing.rows]
        words += _words(listing, own.get("split"), word, joined=len(listings) > 1)
    kind = _labels.kind_of(cells, target)
    whole, words, classes, note = _labelled(kind, paths, cells, words, label_separator)
    reading = Reading().noting(note)
    if any(words):
        rows = {word: [i for i, own in enumerate(words) if own == word] for word in _ORDER}
        splits = {word: whole.subset(part, word) for word, part in rows.items() if part}
        source = f"the column {columns.get('split')!r}" if "split" in columns else "their lists"
        if "train" not in splits and not all_test:
            raise VPromptError(
                f"{table} has no row whose {columns.get('split', 'split')!r} is 'train'."
            )
        made = given(splits, split_seed, f"given by {source}", f"given by {source}")
    elif all_test:
        made = as_test(whole)
    else:
        made = cut(
            whole,
            classes,
            fractions,
            split_seed,
            allow_absent=allow_absent,
            where=table,
            fold=fold,
        )
        reading = reading.noting(_beside(table))
    return Task(
        name=table.stem,
        classes=classes,
        train=made.splits.get("train", Split("train", (), ())),
        val=made.splits.get("val"),
        test=SealedSplit(made.splits["test"]) if "test" in made.splits else None,
        facts={
            "source": "table",
            "file": table.name,
            "columns": columns,
            "splits": made.how,
            "split_seed": split_seed,
            "sizes": {name: len(split) for name, split in made.splits.items()},
        },
        allow_absent=allow_absent,
        only_test=all_test,
        reading=replace(reading, cut=made.words),
        target=kind,
    )


def _labelled(
    kind: str,
    paths: Sequence[Path],
    cells: Sequence[_labels.Cell],
    words: Sequence[str],
    separator: str,
) -> tuple[Split, list[str], tuple[str, ...], str]:
    """Return all images with labels, the split word of each, the classes, and what to say."""
    if kind != SEVERAL:
        _check_once(cells, paths)
    if kind == NUMBER:
        whole = Split("all", tuple(paths), tuple(_labels.numbers(cells)))
        return whole, list(words), (cells[0].column,), ""
    if kind == CLASS:
        texts = _one_spelling([each.text for each in cells])
        classes, note = _named(set(texts))
        place = {name: index for index, name in enumerate(classes)}
        whole = Split("all", tuple(paths), tuple(place[text] for text in texts))
        return whole, list(words), classes, note or _labels.remark(cells)
    keys = [os.path.normpath(path) for path in paths]
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    for key, several in rows.items():
        if len({words[row] for row in several}) > 1:
            first, other = cells[several[0]], cells[several[-1]]
            raise VPromptError(
                f"{other.where}: {Path(key).name!r} stands in another split than in "
                f"{first.where}. Keep the rows of an image in one, or it is learned from and "
                "tested on."
            )
    found = _labels.sets(cells, separator, joined=len(rows) < len(cells))
    flat = _one_spelling([name for names in found for name in names])
    spelled = iter(flat)
    found = [tuple(next(spelled) for _ in names) for names in found]
    if not flat:
        raise VPromptError(f"{cells[0].file} names no class in its column {cells[0].column!r}.")
    classes, note = _named(set(flat))
    place = {name: index for index, name in enumerate(classes)}
    labels: tuple[Label, ...] = tuple(
        tuple(sorted({place[name] for row in several for name in found[row]}))
        for several in rows.values()
    )
    if not any(len(names) > 1 for names in found) and len(rows) == len(cells):
        note = note or "no image has more than one class"
    firsts = [several[0] for several in rows.values()]
    whole = Split("all", tuple(paths[row] for row in firsts), labels)
    return whole, [words[row] for row in firsts], classes, note


def _named(names: set[str]) -> tuple[tuple[str, ...], str]:
    """Return the classes in their order, and a doubt about one that means nothing."""
    classes = _sorted_names(names)
    gaps = [name for name in classes if name.lower() in _GAPS]
    return classes, f"the label {gaps[0]!r} is taken for a class" if gaps else ""


def _columns(listing: Listing, image: str, label: str, split: str) -> dict[str, str]:
    """Return the columns by role; a name that is not the usual one is the one that is wanted."""
    wanted = {"image": image, "label": label, "split": split}
    asked = {role: None if name == role else name for role, name in wanted.items()}
    columns = {role: listing.needed(role, asked[role]) for role in ("image", "label")}
    if asked["split"] is not None:
        columns["split"] = listing.needed("split", asked["split"])
    else:
        found = listing.column("split")
        if found is not None and (found.strip().lower() == "split" or _is_split(listing, found)):
            columns["split"] = found
    return columns


def _is_split(listing: Listing, column: str) -> bool:
    """Say whether a column of another name, such as `subset`, holds splits and nothing else."""
    cells = (row.values.get(column) for row in listing.rows)
    return all(isinstance(cell, str) and cell.strip().lower() in SPLITS for cell in cells)


def _words(listing: Listing, column: str | None, word: str, *, joined: bool) -> list[str]:
    """Return the split of every row: what its column says, or the list it stands in."""
    if column is None or (joined and word != "train"):
        return [word if joined else ""] * len(listing.rows)
    if joined:
        raise VPromptError(
            f"{listing.file} names splits in its column {column!r}, and other lists are given for "
            "them as well. Leave out `val` and `test`, or the column."
        )
    found = []
    for row in listing.rows:
        text = str(listing.cell(row, column))
        if text.lower() not in SPLITS:
            raise VPromptError(
                f"{listing.file}, {row.place}: no split called {text!r}."
                f"{suggest(text.lower(), SPLITS)}"
            )
        found.append(SPLITS[text.lower()])
    return found


def _check_once(cells: Sequence[_labels.Cell], paths: Sequence[Path]) -> None:
    """Raise VPromptError where an image is listed twice."""
    seen: dict[str, _labels.Cell] = {}
    several = len({each.file for each in cells}) > 1
    for each, path in zip(cells, paths, strict=True):
        first = seen.setdefault(os.path.normpath(path), each)
        if first is not each:
            place = f"{first.file.name}, {first.place}" if several else first.place
            raise VPromptError(
                f"{each.where}: {path.name!r} is listed already in {place}. Keep one of them, or "
                "the same image could be learned from and tested on; where an image has several "
                "classes, add `--target several`."
            )


def _one_spelling(texts: Sequence[str]) -> list[str]:
    """Return labels in which 1 and 1.0 are one, as where a table was saved with gaps.

    Where all are whole numbers they become plain ones; elsewhere `1.0` only where `1` occurs, too.
    """
    known = set(texts)
    whole = {text: _WHOLE_NUMBER.fullmatch(text) for text in known}
    names = {text: str(int(match[1])) for text, match in whole.items() if match}
    if len(names) < len(known):
        names = {text: name for text, name in names.items() if name in known}
    return [names.get(text, text) for text in texts]


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _beside(table: Path) -> str:
    """Say so where lists of other splits lie beside one that is named for training."""
    found = re.fullmatch(r"(.*?)(train(?:ing)?)([^a-z]*)", table.stem, re.IGNORECASE)
    if found is None:
        return ""
    others = {word: table.with_name(f"{found[1]}{word}{found[3]}{table.suffix}") for word in _ORDER}
    there = {word: path for word, path in others.items() if word != "train" and path.is_file()}
    if not there:
        return ""
    names = ", ".join(path.name for path in there.values())
    more = ", ".join(f"{word}='{path}'" for word, path in there.items())
    return f"{names} beside {table.name} is not read; this reads it: table(file='{table}', {more})"
