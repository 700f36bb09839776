"""Cutting: how images of a folder or a list become splits, and how that is said."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vprompt.core.errors import VPromptError
from vprompt.data import targets
from vprompt.data.census import shares
from vprompt.data.task import Split, split_by_class

FRACTIONS = (0.64, 0.16, 0.2)
_VAL_SHARE = 0.2  # of train, where train and test are given and nothing to validate on
_WORDS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Cut:
    """Splits, how they came about for the record, and the same in a person's words."""

    splits: dict[str, Split]
    how: str
    words: str


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise VPromptError unless there is a share for train, val and test, and they sum to 1."""
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


def cut(
    whole: Split,
    classes: Sequence[str],
    fractions: Sequence[float],
    seed: int,
    *,
    allow_absent: bool,
    where: object,
    fold: str = "",
) -> Cut:
    """Cut images into train, val and test, class by class; `where` is what they were read from.

    `fold`, such as `2/5`, takes the second of five parts for test, and of the others a fifth for
    val: over all folds, every image is tested on once.
    """
    counts, by = targets.counts(whole.labels), _by(whole)
    single = [name for index, name in enumerate(classes) if counts[index] == 1]
    if single and not allow_absent:
        raise VPromptError(
            f"{where} has classes with one image only: {', '.join(map(repr, single[:6]))}. One "
            "image cannot be both learned from and tested on; add images or remove the class, give "
            "splits, or add --allow-absent."
        )
    if fold:
        number, count = _read_fold(fold)
        each = split_by_class(whole.labels, [1 / count] * count, seed)
        test = each.pop(number - 1)
        others = sorted(row for part in each for row in part)
        parted = (1 - _VAL_SHARE, _VAL_SHARE)
        labels = [whole.labels[row] for row in others]
        train, val = ([others[i] for i in p] for p in split_by_class(labels, parted, seed))
        splits = {
            name: whole.subset(rows, name)
            for name, rows in zip(_WORDS, (train, val, test), strict=True)
            if rows or name == "train"
        }
        words = f"cut into {count} folds by seed {seed}, fold {number} for test"
        return Cut(splits, f"{words}, {by}", words)
    parts = zip(_WORDS, split_by_class(whole.labels, fractions, seed), strict=True)
    splits = {name: whole.subset(rows, name) for name, rows in parts if rows or name == "train"}
    how = f"cut into {', '.join(f'{share:g}' for share in fractions)} {by}"
    return Cut(splits, how, f"cut {shares(fractions)} by seed {seed}")


def _by(whole: Split) -> str:
    """Say by what images are cut: each part has as much of it."""
    if any(isinstance(label, float) for label in whole.labels):
        return "by size"
    several = any(isinstance(label, tuple) for label in whole.labels)
    return "by the rarest class of each image" if several else "by class"


def _read_fold(text: str) -> tuple[int, int]:
    """Read `2/5`, the second of five."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) >= 2:
        return int(number), int(count)
    raise VPromptError(f"fold is such as '1/5', the first of five, but got {text!r}.")


def given(splits: Mapping[str, Split], seed: int, how: str, words: str) -> Cut:
    """Return splits as they are given; without val, a fifth of train becomes val."""
    ordered = {name: splits[name] for name in _WORDS if name in splits}
    if "val" in ordered or "train" not in ordered:
        return Cut(ordered, how, words)
    train = ordered["train"]
    rows = split_by_class(train.labels, (1 - _VAL_SHARE, _VAL_SHARE), seed)
    made = {
        name: train.subset(part, name) for name, part in zip(_WORDS, rows, strict=False) if part
    }
    how += f"; val is {_VAL_SHARE:.0%} of train, {_by(train)}"
    words += f"; val is {100 * _VAL_SHARE:g} % of train, by seed {seed}"
    return Cut({**made, **{k: v for k, v in ordered.items() if k != "train"}}, how, words)


def all_test(whole: Split) -> Cut:
    """Return all images as test images."""
    words = "all images taken as test"
    return Cut({"test": replace(whole, name="test")}, words, words)
