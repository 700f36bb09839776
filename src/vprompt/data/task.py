"""Task: named splits of labelled images, class names, and a test split that stays closed.

`train` is learned from, `val` chooses, and the test split can be opened by `results.measure` alone.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.progress import SILENT, Progress
from vprompt.core.randomness import numpy_stream
from vprompt.core.types import Targets
from vprompt.data import census, targets
from vprompt.data.census import Census, Reading
from vprompt.data.images import load_pixels
from vprompt.data.preprocessing import DataConfig, Values
from vprompt.data.targets import CLASS, NUMBER, Label


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels: files, or pixels `uint8 [images, height, width, 3]` that were drawn."""

    name: str
    images: tuple[Path, ...] | NDArray[np.uint8]
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        """Check that every image has a label."""
        if len(self.images) != len(self.labels):
            raise VPromptError(
                f"Split {self.name!r} has {len(self.images)} images and {len(self.labels)} labels."
            )

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    @property
    def labels_present(self) -> frozenset[int]:
        """The classes that occur."""
        return frozenset(targets.counts(self.labels))

    def subset(self, rows: Sequence[int], name: str) -> "Split":
        """Return some of the images under another name."""
        if isinstance(self.images, tuple):
            images: Any = tuple(self.images[row] for row in rows)
        else:
            images = self.images[list(rows)]
        return Split(name, images, tuple(self.labels[row] for row in rows))

    def __add__(self, other: "Split") -> "Split":
        """Join two splits, such as train800 and val200 into train800val200."""
        if isinstance(self.images, tuple) and isinstance(other.images, tuple):
            images: Any = self.images + other.images
        else:
            images = np.concatenate([np.asarray(self.images), np.asarray(other.images)])
        return Split(self.name + other.name, images, self.labels + other.labels)


@dataclass(frozen=True, eq=False)
class Examples:
    """A split made ready for one backbone: `uint8` pixels, labels, and a digest of both.

    `rows` are the images of the split that could be read, `values` the range by which images of
    more than 8 bits became 8, and `warned` what Pillow said of single rows.
    """

    pixels: NDArray[np.uint8]
    labels: Targets
    digest: str
    rows: tuple[int, ...] | None = field(default=None, kw_only=True)
    values: Values | None = field(default=None, kw_only=True)
    warned: tuple[tuple[int, str], ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Any, Targets]]:
        """Yield `(pixels, labels)` in the given order; the pixels are a copy, never the cache.

        A subclass may yield what was computed from the pixels in their place.
        """
        for rows in self.parts(size, order):
            yield torch.from_numpy(self.pixels[rows.numpy()]), self.labels[rows]

    def parts(self, size: int, order: Tensor | None = None) -> Sequence[Tensor]:
        """Return the rows of every batch, all rows without an order; of no rows, no batch."""
        order = torch.arange(len(self)) if order is None else order
        return order.split(size) if len(order) else ()

    def subset(self, rows: Sequence[int]) -> "Examples":
        """Return some of the examples, decoded as they are."""
        chosen = list(rows)
        own = digest(self.digest, str(chosen))
        return Examples(self.pixels[chosen], self.labels[chosen], own, values=self.values)


class SealedSplit:
    """The test split: its size can be asked by anyone, its images by `results.measure` alone."""

    def __init__(self, split: Split) -> None:
        self.__split, self.name, self.opened = split, split.name, 0
        self.labels_present = split.labels_present  # which classes occur, not where
        self.images_per_class = tuple(targets.counts(split.labels).values())

    def __len__(self) -> int:
        """Count the images."""
        return len(self.__split)

    def cut(self, part: Callable[[Split], Split]) -> "SealedSplit":
        """Return the split after `part`, such as some of its classes, sealed as it was."""
        return SealedSplit(part(self.__split))

    def open(self) -> Split:
        """Return the images and labels, to `results.measure` and to nobody else."""
        caller = _calling_module()
        if caller != "vprompt.results.measure":
            raise VPromptError(
                f"The test split {self.name!r} can be opened by vprompt.results.measure alone, but "
                f"{caller!r} asked. Choose settings on the validation split, and call "
                "`vprompt.results.measure.test_accuracy` once at the end."
            )
        self.opened += 1
        return self.__split

    def renumbered(self, labels: Mapping[int, int]) -> "SealedSplit":
        """Return the same images, sealed, with other numbers for their classes."""

        def other(label: Label) -> Label:
            if isinstance(label, tuple):
                return tuple(sorted(labels[number] for number in label))
            return label if isinstance(label, float) else labels[label]

        split = self.__split
        return SealedSplit(Split(split.name, split.images, tuple(map(other, split.labels))))


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled images to learn from; `facts` say where they come from, in every result.

    `target` is one of `targets.KINDS`. A task of numbers has one class, which names what they
    measure. `templates` are sentences with `{}` for a class name, for models with a text tower.
    With `only_test` there is nothing to learn from, and `train` may be empty. `reading` says what
    was found and done when it was read. `values` says which values become black and white in
    images of more than 8 bits; by default it is the range of the training images, for all splits.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None = None
    test: SealedSplit | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    allow_absent: bool = False
    templates: tuple[str, ...] = ()
    only_test: bool = False
    reading: Reading = field(default_factory=Reading)
    values: Values | None = None
    target: str = CLASS

    def __post_init__(self) -> None:
        """Check what would otherwise fail late or, worse, pass unnoticed."""
        if targets.checked(self.target) != CLASS:
            val = () if self.val is None else self.val.labels
            labels = {"train": self.train.labels, "val": val}
            targets.check(self.name, self.target, labels)
        self._check_range()
        if self.only_test:
            return
        if len(self.train) == 0:
            raise VPromptError(f"Task {self.name!r} has no training images.")
        if self.target != CLASS:
            targets.check_varies(self.name, self.classes, self.train.labels)
        if self.target == NUMBER:
            return
        counts = self.class_counts()
        if self.target == CLASS and sum(count > 0 for count in counts) < 2:
            raise VPromptError(
                f"Task {self.name!r} has training images of one class only; a classifier needs two."
            )
        if not self.allow_absent and "few_shot" not in self.facts:
            single = [self.classes[c] for c, count in enumerate(counts) if count == 1]
            if single:
                raise VPromptError(
                    f"Task {self.name!r} has classes with one training image: {_some(single)}. "
                    "Add images of them or remove them; at least two are needed."
                )
        self._check_absent(counts)

    def class_counts(self) -> list[int]:
        """Return the number of training images per class."""
        found = targets.counts(self.train.labels)
        return [found[index] for index in range(len(self.classes))]

    def census(self) -> Census:
        """Count what the task holds, for a person to read before the work and for the record."""
        splits = {"train": self.train.labels, "val": () if self.val is None else self.val.labels}
        present = {name: list(targets.counts(each).values()) for name, each in splits.items()}
        present["test"] = [] if self.test is None else list(self.test.images_per_class)
        images = {name: len(labels) for name, labels in splits.items()}
        images["test"] = len(self.test or ())
        about = targets.described(self.target, self.classes, self.train.labels)
        return census.take(self.classes, present, self.reading, images=images, about=about)

    def few_shot(self, shots: int, seed: int) -> "Task":
        """Return the task with `shots` training images per class, and as many to validate on.

        Validation images are drawn too (at most `shots` per class), because a person with few
        labels has few for choosing as well. A class with fewer images gives all it has. The draw
        is written into `facts`.
        """
        if self.target != CLASS:
            what = "a number has none" if self.target == NUMBER else "an image has several"
            raise VPromptError(
                f"--shots draws images of each class, and in task {self.name!r} {what}. Leave "
                "--shots out, and list the images to learn from."
            )
        train = _draw(self.train, shots, seed, f"{self.name} train")
        val = None if self.val is None else _draw(self.val, shots, seed, f"{self.name} val")
        drawn: dict[str, Any] = {"shots": shots, "seed": seed, "train": list(train[1])}
        if val is not None:
            drawn["val"] = list(val[1])
        fewer = {
            name: _fewer(split[0], shots)
            for name, split in (("train", train), ("val", val))
            if split is not None and _fewer(split[0], shots)
        }
        reading = self.reading.noting(f"{shots} images of each class drawn by seed {seed}")
        if fewer:
            drawn["fewer"] = fewer
            listing = " and ".join(f"{name} has {text}" for name, text in fewer.items())
            reading = self.reading.noting(
                f"{shots} images of each class were asked for, and {listing}; all of these are used"
            )
        facts = {**self.facts, "few_shot": drawn}
        return replace(self, train=train[0], val=val and val[0], facts=facts, reading=reading)

    def examples(
        self,
        split: Split,
        config: DataConfig,
        *,
        skip_bad: bool = False,
        progress: Progress = SILENT,
    ) -> Examples:
        """Return a split at the backbone's image size, decoded once and cached."""

        def range_of_training() -> Values:
            if self.values is not None:
                return self.values
            return load_pixels(self.train.images, config, skip_bad=skip_bad).values or Values()

        own = self.values is None and (split is self.train or not len(self.train))
        pixels = load_pixels(
            split.images,
            config,
            values=None if own else range_of_training,
            skip_bad=skip_bad,
            progress=progress,
        )
        kept = [split.labels[row] for row in pixels.kept]
        labels = targets.tensor(kept, self.target, len(self.classes))
        return Examples(
            pixels.array,
            labels,
            digest(pixels.digest, str(labels.tolist())),
            rows=pixels.kept,
            values=pixels.values,
            warned=pixels.warned,
        )

    def _check_range(self) -> None:
        for split in (self.train, self.val, self.test):
            labels = () if split is None else split.labels_present
            wrong = sorted(label for label in labels if not 0 <= label < len(self.classes))
            if split is not None and wrong:
                raise VPromptError(
                    f"Task {self.name!r} has {len(self.classes)} classes, numbered from 0, but "
                    f"{split.name!r} holds the labels {wrong[:5]}."
                )

    def _check_absent(self, counts: list[int]) -> None:
        for split in (self.val, self.test):
            if split is None or self.allow_absent:
                continue
            absent = sorted(label for label in split.labels_present if counts[label] == 0)
            if absent:
                raise VPromptError(
                    f"Task {self.name!r} has classes in {split.name!r} that no training image "
                    f"shows: {_some([self.classes[c] for c in absent])}. Add training images, or "
                    "add --allow-absent to count them as errors."
                )


def _calling_module() -> str:
    """Name the module that called into this one; shape checks in between, as in tests, are none."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        checker = (
            name.startswith(("jaxtyping", "beartype")) or "@beartype" in frame.f_code.co_filename
        )
        if not checker and name != __name__:
            return name
        frame = frame.f_back
    return ""


def split_by_class(
    labels: Sequence[Label], fractions: Sequence[float], seed: int
) -> list[list[int]]:
    """Cut rows into parts, class by class, so that every part shows every class it can.

    Deterministic in `seed`; the last part takes the remainder. Rows keep their order. Numbers, and
    sets of classes, are cut by `targets.split_evenly`.
    """
    if any(isinstance(label, tuple | float) for label in labels):
        return targets.split_evenly(labels, fractions, seed)
    rng = numpy_stream(seed, "split_by_class")
    parts: list[list[int]] = [[] for _ in fractions]
    values = np.asarray(labels)
    for label in sorted(set(labels)):
        rows = rng.permutation(np.flatnonzero(values == label))
        edges = np.round(np.cumsum(fractions)[:-1] * len(rows)).astype(int)
        for part, chunk in zip(parts, np.split(rows, edges), strict=True):
            part.extend(int(row) for row in chunk)
    return [sorted(part) for part in parts]


def split_by_sizes(
    labels: Sequence[int] | NDArray[np.int64], sizes: Sequence[int], seed: int, purpose: str
) -> list[list[int]]:
    """Cut rows into parts of exact sizes, every class in proportion; the rest is one part more.

    Rows are sorted by their relative rank within their class, so any run of them holds the classes
    in proportion and nothing needs rounding class by class.
    """
    rng, values = numpy_stream(seed, purpose), np.asarray(labels)
    rank = np.empty(len(values))
    for label in np.unique(values):
        rows = rng.permutation(np.flatnonzero(values == label))
        rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.argsort(rank, kind="stable")
    return [sorted(part.tolist()) for part in np.split(order, np.cumsum(sizes))]


def _draw(split: Split, shots: int, seed: int, purpose: str) -> tuple[Split, tuple[int, ...]]:
    rng = numpy_stream(seed, f"few_shot {purpose}")
    labels = np.asarray(split.labels)
    rows: list[int] = []
    for label in sorted(set(split.labels)):
        found = np.flatnonzero(labels == label)
        rows.extend(int(row) for row in rng.permutation(found)[:shots])
    rows.sort()
    return split.subset(rows, f"{split.name}_{shots}shot_seed{seed}"), tuple(rows)


def _fewer(split: Split, shots: int) -> str:
    """Say how many images classes have that have fewer than were to be drawn; nothing of none."""
    counts = sorted(count for count in Counter(split.labels).values() if count < shots)
    if not counts:
        return ""
    span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    classes = len(set(split.labels))
    of = "each class" if len(counts) == classes else f"{len(counts)} of {classes} classes"
    return f"{span} of {of}"


def _some(words: Sequence[str], limit: int = 6) -> str:
    more = f", and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(repr(word) for word in words[:limit]) + more
