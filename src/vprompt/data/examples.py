"""Examples: which images are VTAB-1k's 1000, without TensorFlow.

TFDS shuffles a part of a data set once, when it writes it: examples are sorted by the MD5 of the
part's name followed by the example's key. VTAB then takes slices. Keys are file names or running
numbers, so the official examples follow from the original data alone. The VPT authors published
the file names of their examples; the tests hold the order against them.

Reference: the order is that of tensorflow_datasets 3 and 4 (`core/hashing.py`), the slices are
those of Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vprompt.core.randomness import numpy_stream
from vprompt.data.vtab import TRAIN, VAL, Slice, VtabTask

Order = Callable[[str, Sequence[str]], list[int]]


@dataclass(frozen=True)
class Chosen:
    """The examples of one split: rows of one part of the data set, and the rule in TFDS's words."""

    part: str
    rows: tuple[int, ...]
    rule: str


def tfds_order(part: str, keys: Sequence[str]) -> list[int]:
    """Return the rows of a part in the order in which TFDS stores and reads them."""
    salted = hashlib.md5(part.encode(), usedforsecurity=False)

    def place(row: int) -> bytes:
        hashed = salted.copy()
        hashed.update(keys[row].encode())
        return hashed.digest()

    return sorted(range(len(keys)), key=place)


def seeded_order(seed: int) -> Order:
    """Return another order, drawn by a seed; it depends on the keys, not on how they are listed."""

    def order(part: str, keys: Sequence[str]) -> list[int]:
        listed = sorted(range(len(keys)), key=keys.__getitem__)
        drawn = numpy_stream(seed, f"vtab {part}").permutation(len(keys))
        return [listed[row] for row in drawn]

    return order


def choose(
    task: VtabTask, parts: Mapping[str, Sequence[str]], order: Order = tfds_order
) -> dict[str, Chosen]:
    """Return train800, val200 and test of a task, from the keys of every part.

    A slice ends where the next one of its part begins, which matters only where a part is far
    smaller than the real one.
    """
    orders = {part: order(part, keys) for part, keys in parts.items()}
    wanted: dict[str, tuple[Slice, int | None]] = {
        "train800": (Slice("train"), TRAIN),
        "val200": (task.val, VAL),
        "test": (task.test, None),
    }
    starts = {
        cut.part: {c.percent for c, _ in wanted.values() if c.part == cut.part}
        for cut, _ in wanted.values()
    }
    chosen = {}
    for split, (cut, most) in wanted.items():
        rows = orders[cut.part]
        begin = _share(cut.percent, len(rows))
        later = [percent for percent in starts[cut.part] if percent > cut.percent]
        end = _share(min(later, default=100), len(rows))
        end = end if most is None else min(end, begin + most)
        rule = f"{cut.part}[{begin}:{end}]" if (begin, end) != (0, len(rows)) else cut.part
        chosen[split] = Chosen(cut.part, tuple(rows[begin:end]), rule)
    return chosen


def _share(percent: int, total: int) -> int:
    return percent * total // 100
