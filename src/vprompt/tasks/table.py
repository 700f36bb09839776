"""Table: a CSV, TSV or JSONL list of image files with their labels, and perhaps their splits."""

import csv
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.errors import VPromptError
from vprompt.registry import suggest
from vprompt.task import SealedSplit, Split, Task, split_by_class

ALIASES = {"image": ("path", "filename", "impath"), "label": ("class", "target")}
SPLIT_WORDS = {
    "train": "train",
    "train800": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "val200": "val",
    "test": "test",
}
_FRACTIONS = (0.64, 0.16, 0.2)
_VAL_SHARE = 0.2  # of train, where the table names train and test but nothing to validate on
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class _Row:
    line: int
    values: dict[str, Any]


def load(
    *,
    file: str,
    root: str = "",
    image_column: str = "image",
    label_column: str = "label",
    split_column: str = "split",
    seed: int = 0,
    allow_absent: bool = False,
) -> Task:
    """Read one image per row; paths are relative to `root`, or else to the table's folder.

    Class names are the labels, sorted (as numbers where all are integers). Without a split
    column the rows are cut 64 : 16 : 20, class by class, by `seed`; with one that names no val,
    20 % of train becomes val. A default column name may also be one of its `ALIASES`.
    """
    table = Path(file).expanduser()
    rows = _read(table)
    columns = _columns(table, rows, image_column, label_column, split_column)
    folder = Path(root).expanduser() if root else table.parent
    paths = _paths(table, rows, columns["image"], folder)
    texts = [_label(table, row, columns["label"]) for row in rows]
    classes = _sorted_names(set(texts))
    place = {name: index for index, name in enumerate(classes)}
    whole = Split("all", paths, tuple(place[text] for text in texts))
    if "split" in columns:
        splits, how = _given_splits(table, rows, columns["split"], whole, seed)
    else:
        splits, how = _cut(table, whole, classes, seed, allow_absent)
    return Task(
        name=table.stem,
        classes=classes,
        train=splits["train"],
        val=splits.get("val"),
        test=SealedSplit(splits["test"]) if "test" in splits else None,
        facts={
            "source": "table",
            "file": table.name,
            "columns": columns,
            "splits": how,
            "split_seed": seed,
            "sizes": {name: len(split) for name, split in splits.items()},
        },
        allow_absent=allow_absent,
    )


def _read(table: Path) -> list[_Row]:
    suffix = table.suffix.lower()
    if suffix not in _DELIMITERS and suffix not in _JSON_LINES:
        raise VPromptError(
            f"Cannot tell how to read {table}: its name should end in one of "
            f"{', '.join([*_DELIMITERS, *_JSON_LINES])}."
        )
    if not table.is_file():
        raise VPromptError(f"No file at {table}.")
    try:
        rows = (
            _read_json_lines(table)
            if suffix in _JSON_LINES
            else _read_delimited(table, _DELIMITERS[suffix])
        )
    except UnicodeDecodeError as error:
        raise VPromptError(f"{table} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    if not rows:
        raise VPromptError(f"{table} lists no images.")
    return rows


def _read_delimited(table: Path, delimiter: str) -> list[_Row]:
    rows = []
    with table.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) < len(header):
                raise VPromptError(f"{table}, line 1: two columns have the same name: {header}.")
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise VPromptError(
                        f"{table}, line {reader.line_num}: expected {len(header)} cells "
                        f"({', '.join(header)}), got {len(cells)}: {cells}."
                    )
                rows.append(_Row(reader.line_num, dict(zip(header, cells, strict=True))))
        except csv.Error as error:
            raise VPromptError(f"{table}, line {reader.line_num}: {error}.") from None
    return rows


def _read_json_lines(table: Path) -> list[_Row]:
    rows = []
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise VPromptError(f"{table}, line {number}: not valid JSON: {error}.") from None
        if not isinstance(values, dict):
            raise VPromptError(
                f"{table}, line {number}: expected an object such as "
                f'{{"image": "a.png", "label": "cat"}}, got {line.strip()[:60]!r}.'
            )
        rows.append(_Row(number, values))
    return rows


def _columns(table: Path, rows: list[_Row], image: str, label: str, split: str) -> dict[str, str]:
    present = list(dict.fromkeys(key for row in rows for key in row.values))
    columns = {}
    for role, wanted in (("image", image), ("label", label)):
        # Aliases stand in for the default alone: a mistyped name must not train on other labels.
        names = (wanted, *ALIASES[role]) if wanted == role else (wanted,)
        known = [name for name in names if name in present]
        if not known:
            raise VPromptError(
                f"{table} has no column {wanted!r} for the {role}.{suggest(wanted, present)} "
                f"Name the right one: `{role}_column=...`."
            )
        columns[role] = known[0]
    if split in present:
        columns["split"] = split
    elif split != "split":
        raise VPromptError(
            f"{table} has no column {split!r} for the split.{suggest(split, present)} "
            "Name the right one: `split_column=...`."
        )
    return columns


def _cell(table: Path, row: _Row, column: str) -> Any:
    value = row.values.get(column)
    value = value.strip() if isinstance(value, str) else value
    if value is None or value == "":
        raise VPromptError(f"{table}, line {row.line}: the column {column!r} is empty.")
    return value


def _paths(table: Path, rows: list[_Row], column: str, folder: Path) -> tuple[Path, ...]:
    seen: dict[str, int] = {}
    paths = []
    for row in rows:
        name = str(_cell(table, row, column))
        path = folder / name
        if not path.is_file():
            raise VPromptError(
                f"{table}, line {row.line}: no image file at {path}. Paths are relative to "
                f"{folder}; name another folder with `root=...`."
            )
        key = os.path.normpath(path)
        if key in seen:
            raise VPromptError(
                f"{table}, line {row.line}: {name!r} is listed already in line {seen[key]}. Keep "
                "one of them, or the same image could be learned from and tested on."
            )
        seen[key] = row.line
        paths.append(path)
    return tuple(paths)


def _label(table: Path, row: _Row, column: str) -> str:
    value = _cell(table, row, column)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (is_number and math.isfinite(value)):
        return str(value)
    raise VPromptError(
        f"{table}, line {row.line}: a label is text or a number, got {json.dumps(value)}."
    )


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _given_splits(
    table: Path, rows: list[_Row], column: str, whole: Split, seed: int
) -> tuple[dict[str, Split], str]:
    members: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, row in enumerate(rows):
        word = str(_cell(table, row, column))
        if word.lower() not in SPLIT_WORDS:
            raise VPromptError(
                f"{table}, line {row.line}: no split called {word!r}."
                f"{suggest(word.lower(), SPLIT_WORDS)}"
            )
        members[SPLIT_WORDS[word.lower()]].append(index)
    if not members["train"]:
        raise VPromptError(f"{table} has no row whose {column!r} is 'train'.")
    how = f"given by the column {column!r}"
    if not members["val"]:
        train = members["train"]
        parts = split_by_class(
            [whole.labels[row] for row in train], (1 - _VAL_SHARE, _VAL_SHARE), seed
        )
        members["train"], members["val"] = ([train[row] for row in part] for part in parts)
        how += f"; val is {_VAL_SHARE:.0%} of train, by class"
    return {name: whole.subset(part, name) for name, part in members.items() if part}, how


def _cut(
    table: Path, whole: Split, classes: tuple[str, ...], seed: int, allow_absent: bool
) -> tuple[dict[str, Split], str]:
    single = [name for index, name in enumerate(classes) if whole.labels.count(index) == 1]
    if single and not allow_absent:
        raise VPromptError(
            f"{table} has classes with one image only: {', '.join(map(repr, single[:6]))}. One "
            "image cannot be both learned from and tested on; add images or remove the rows, add "
            "a split column, or add --allow-absent-classes."
        )
    parts = zip(
        ("train", "val", "test"), split_by_class(whole.labels, _FRACTIONS, seed), strict=True
    )
    splits = {name: whole.subset(rows, name) for name, rows in parts if rows}
    return splits, f"cut into {', '.join(f'{share:g}' for share in _FRACTIONS)} by class"
