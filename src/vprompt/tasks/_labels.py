"""Labels: what stands in a list's column of labels, read as one class, several, or a number.

What a list does not say by itself is asked: numbers may be names of classes, and `a|b` one name.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.data.finding import same_text
from vprompt.data.lists import Listing, Row
from vprompt.data.targets import CLASS, NUMBER, SEVERAL, checked

SEPARATORS = ("|", ";")  # between the classes of a cell, the first of them that occurs
NOTHING = "[]"  # an image that shows none of the classes
_MISSING = {
    CLASS: "Write the class of the image, or take the row out.",
    SEVERAL: f"Write its classes with `|` between them, `{NOTHING}` for an image that shows none "
    "of them, or take the row out.",
    NUMBER: "Write the number, or take the row out.",
}
_FEW_DECIMALS, _FEW_WHOLE = 10, 20  # different numbers that are surely taken for classes
_IMAGES_OF_A_CLASS = 5  # fewer images for each different number are rather measurements


@dataclass(frozen=True)
class Cell:
    """What a row of a list says of its image."""

    file: Path
    place: str
    column: str
    value: Any

    @property
    def where(self) -> str:
        """The file and the line."""
        return f"{self.file}, {self.place}"

    @property
    def text(self) -> str:
        """The value as the name of one class; raises VPromptError where it is none."""
        return as_text(self.value, self.where)

    @property
    def number(self) -> float | None:
        """The value as a number, which may be infinite or none at all; None where it is words."""
        if isinstance(self.value, bool) or not isinstance(self.value, str | int | float):
            return None
        try:
            return float(self.value)
        except (ValueError, OverflowError):
            return None


def cell(listing: Listing, row: Row, column: str, target: str) -> Cell:
    """Return a row's label; raises VPromptError where there is none, with what to write."""
    value = row.values.get(column)
    value = value.strip() if isinstance(value, str) else value
    if value is None or value == "":
        raise VPromptError(
            f"{listing.file}, {row.place}: the column {column!r} is empty. "
            f"{_MISSING[target or CLASS]}"
        )
    return Cell(listing.file, row.place, column, value)


def as_text(value: Any, where: str) -> str:
    """Return a value as the name of a class."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (is_number and math.isfinite(value)):
        return same_text(str(value))
    raise VPromptError(f"{where}: a label is text or a number, got {json.dumps(value)}.")


def kind_of(cells: Sequence[Cell], asked: str) -> str:
    """Return what the labels are: what was asked for, else classes; raises a question of doubt."""
    if asked:
        return checked(asked)
    for each in cells:
        if isinstance(each.value, list) or (isinstance(each.value, str) and "|" in each.value):
            raise VPromptError(
                f"{each.where}: the label {_shown(each.value)} looks like several classes of one "
                f"image. Add {_say(SEVERAL, 'if they are')}, or {_say(CLASS, 'if it is one name')} "
                f"{_in_a_spec(each, SEVERAL)}"
            )
    found = _measured(cells)
    if found and (found.decimals or len(cells) < _IMAGES_OF_A_CLASS * found.different):
        words = f" beside words such as {found.word!r}" if found.word else ""
        raise VPromptError(
            f"{cells[0].file}: the column {cells[0].column!r} holds {found.different} different "
            f"numbers{words} on {len(cells)} images. Add {_say(NUMBER, 'to learn the number')}, or "
            f"{_say(CLASS, 'to take each for a class')} {_in_a_spec(cells[0], NUMBER)}"
        )
    return CLASS


def remark(cells: Sequence[Cell]) -> str:
    """Say so where many numbers are taken for classes."""
    found = _measured(cells)
    if found is None:
        return ""
    return (
        f"the column {cells[0].column!r} holds {found.different} different numbers, each taken for "
        f"a class; add {_say(NUMBER, 'to learn the number')}"
    )


@dataclass(frozen=True)
class _Measured:
    """Labels that are numbers, for the most part and of many values."""

    different: int
    decimals: bool
    word: str


def _measured(cells: Sequence[Cell]) -> _Measured | None:
    numbers = [each.number for each in cells]
    known = {number for number in numbers if number is not None and math.isfinite(number)}
    words = [e for e, number in zip(cells, numbers, strict=True) if number is None]
    decimals = any(not number.is_integer() for number in known)
    few = _FEW_DECIMALS if decimals else _FEW_WHOLE
    if len(known) <= few or 2 * len(words) > len(cells):
        return None
    return _Measured(len(known), decimals, str(words[0].value) if words else "")


def numbers(cells: Sequence[Cell]) -> list[float]:
    """Return the number of every row; raises VPromptError that names the first that is none."""
    found = [each.number for each in cells]
    wrong = [each for each, number in zip(cells, found, strict=True) if number is None]
    if wrong:
        more = f", and so it is with {len(wrong)} of {len(cells)} rows" if wrong[1:] else ""
        raise VPromptError(
            f"{wrong[0].where}: the label {_shown(wrong[0].value)} is no number{more}. With "
            "`--target number` every row has one, with a point for decimals and no unit; for "
            "classes, `--target class`."
        )
    values = [float(number) for number in found if number is not None]
    for each, value in zip(cells, values, strict=True):
        if not math.isfinite(value):
            raise VPromptError(
                f"{each.where}: the label is {value}, and a number to learn is finite. "
                f"{_MISSING[NUMBER]}"
            )
    return values


def sets(cells: Sequence[Cell], separator: str, *, joined: bool) -> list[tuple[str, ...]]:
    """Return the names of the classes of every row, each once.

    `separator` is what stands between them, one of `SEPARATORS` where it is empty. `joined` says
    that images stand in several rows, so that none of them may hold several.
    """
    texts = [each.value for each in cells if isinstance(each.value, str)]
    mark = separator or next((s for s in SEPARATORS if any(s in text for text in texts)), "")
    listed = any(isinstance(each.value, list) for each in cells)
    if not mark and not joined and not listed:
        commas = next((e for e in cells if isinstance(e.value, str) and "," in e.value), None)
        if commas is not None:
            raise VPromptError(
                f"{commas.where}: several classes have `|` or `;` between them, and "
                f"{_shown(commas.value)} has neither. If `,` is it: "
                f"`table(file='{commas.file}', target=several, label_separator=',')`."
            )
    return [_set(each, mark) for each in cells]


def _set(each: Cell, mark: str) -> tuple[str, ...]:
    if each.value == NOTHING:
        return ()
    parts: list[Any] = [each.value]
    if isinstance(each.value, list):
        parts = each.value
    elif isinstance(each.value, str) and mark:
        parts = [part.strip() for part in each.value.split(mark) if part.strip()]
        if not parts:
            raise VPromptError(f"{each.where}: {_shown(each.value)} names no class.")
    return tuple(dict.fromkeys(as_text(part, each.where) for part in parts))


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _say(target: str, when: str) -> str:
    return f"`--target {target}` {when}"


def _in_a_spec(each: Cell, target: str) -> str:
    return f"(in a spec, `table(file='{each.file}', target={target})`)."
