"""Targets: what the label of an image is: one class, several classes, or a number."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import numpy_stream
from vprompt.core.registry import suggest

CLASS, SEVERAL, NUMBER = "class", "several", "number"
KINDS = (CLASS, SEVERAL, NUMBER)
# What an image is labelled with: the number of its class, those of its classes, or a number.
Label = int | tuple[int, ...] | float
_GROUPS, _OF_A_GROUP = 10, 5


def checked(target: str) -> str:
    """Return a kind of target; raises VPromptError for another word."""
    if target not in KINDS:
        raise VPromptError(
            f"A target is `class`, `several` (several classes an image) or `number`, but got "
            f"{target!r}.{suggest(target, KINDS)}"
        )
    return target


def classes_of(label: Label) -> tuple[int, ...]:
    """Return the classes that a label names, none where it is a number."""
    if isinstance(label, tuple):
        return label
    return () if isinstance(label, float) else (int(label),)


def counts(labels: Iterable[Label]) -> Counter[int]:
    """Count the images of every class that occurs."""
    return Counter(index for label in labels for index in classes_of(label))


def tensor(labels: Sequence[Label], target: str, num_classes: int) -> Tensor:
    """Return labels as training reads them.

    They are `[images]` whole numbers for classes, `[images, classes]` of 0 and 1 for several, and
    `[images]` numbers in double precision, so that a year or a price keeps all its digits.
    """
    if target == CLASS:
        return torch.tensor(labels)
    if target == NUMBER:
        return torch.tensor(labels, dtype=torch.float64)
    found = torch.zeros(len(labels), num_classes)
    for row, label in enumerate(labels):
        found[row, list(classes_of(label))] = 1
    return found


def groups(labels: Sequence[Label]) -> list[int]:
    """Return a group for every image, so that parts cut across all groups resemble one another.

    It is the rarest class of several, and the place among up to ten ranges of numbers.
    """
    if any(isinstance(label, float) for label in labels):
        ordered = np.argsort(np.asarray(labels, dtype=float), kind="stable")
        ranges = max(1, min(_GROUPS, len(labels) // _OF_A_GROUP))
        found = np.empty(len(labels), dtype=int)
        found[ordered] = np.arange(len(labels)) * ranges // max(len(labels), 1)
        return [int(group) for group in found]
    known = counts(labels)
    return [
        min(classes_of(label), key=lambda index: (known[index], index), default=-1)
        for label in labels
    ]


def split_evenly(labels: Sequence[Label], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Cut rows into parts of these shares, each with every group in proportion.

    Rows are sorted by their relative rank within their group, drawn by `seed`, so any run of them
    holds the groups in proportion and nothing needs rounding group by group.
    """
    rng, group = numpy_stream(seed, "split_evenly"), np.asarray(groups(labels), dtype=int)
    rank = np.empty(len(labels))
    for each in np.unique(group):
        rows = rng.permutation(np.flatnonzero(group == each))
        rank[rows] = (np.arange(len(rows)) + rng.random(len(rows))) / len(rows)
    order = np.argsort(rank, kind="stable")
    edges = np.round(np.cumsum(fractions)[:-1] * len(labels)).astype(int)
    return [sorted(part.tolist()) for part in np.split(order, edges)]


def described(target: str, classes: Sequence[str], labels: Sequence[Label]) -> str:
    """Say what there is to learn where it is not one class an image; nothing where it is."""
    if target == CLASS:
        return ""
    if not labels:
        return "several classes an image" if target == SEVERAL else f"numbers ({classes[0]})"
    if target == SEVERAL:
        each = sum(len(classes_of(label)) for label in labels) / len(labels)
        return f"several classes an image, {each:.1f} on average"
    values = np.asarray(labels, dtype=float)
    span = f"from {values.min():.6g} to {values.max():.6g}"
    return f"numbers ({classes[0]}) {span}, {values.mean():.6g} on average"


def check(task: str, target: str, splits: Mapping[str, Sequence[Label]]) -> None:
    """Raise VPromptError for a label that is no number, or no set of classes."""
    kind: type = float if target == NUMBER else tuple
    for name, labels in splits.items():
        for label in labels:
            if not (isinstance(label, kind) and np.isfinite(label).all()):
                wanted = "a finite float" if target == NUMBER else "a tuple of class numbers"
                raise VPromptError(
                    f"Task {task!r} has the label {label!r} in {name!r}, and for the target "
                    f"`{target}` it is {wanted}. Mend it, or leave that image out."
                )


def check_varies(task: str, classes: Sequence[str], labels: Sequence[Label]) -> None:
    """Raise VPromptError for training labels that are all the same."""
    alike = set(labels)
    if len(alike) > 1:
        return
    [label] = alike
    names = ", ".join(classes[index] for index in classes_of(label)) or "no class"
    shown = f"{label:g}" if isinstance(label, float) else names
    raise VPromptError(
        f"Task {task!r} has one label for all of its training images, {shown}, so there is nothing "
        "to tell apart. Add images with other labels."
    )
