"""Several: what is measured of several classes an image: average precision, and F1."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vprompt.core.types import ClassSets
from vprompt.learning.goals import average_precisions
from vprompt.models.heads import Head
from vprompt.results import resampling
from vprompt.results.resampling import Difference


@dataclass(frozen=True)
class SeveralMeasurement:
    """Mean average precision on `images` test images, in [0, 1], with its 95 % interval.

    `average_precision` holds that of every class, None where no test image shows it; such classes
    are in no mean. `chance` is what images in any order would have, `f1` the mean over classes at
    the head's thresholds.
    """

    images: int
    mean_average_precision: float | None
    low: float | None
    high: float | None
    average_precision: dict[str, float | None]
    chance: float | None
    f1: float | None
    gain: Difference | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Judge:
    """Measures candidates on the same images, one after another, each against the first."""

    def __init__(self, labels: ClassSets, classes: Sequence[str]) -> None:
        self.labels, self.classes = labels, classes
        self.first: tuple[str, float | None, NDArray[np.float64]] | None = None

    def __call__(self, name: str, head: Head, logits: Tensor) -> SeveralMeasurement:
        """Return what the logits `[images, classes]` of a candidate are worth."""
        measured, drawn = _judge(head, logits, self.labels, self.classes)
        value = measured.mean_average_precision
        if self.first is None:
            self.first = name, value, drawn
            return measured
        over, other, others = self.first
        return replace(measured, gain=resampling.difference(over, value, other, drawn, others))


def _judge(
    head: Head, logits: Tensor, labels: ClassSets, classes: Sequence[str]
) -> tuple[SeveralMeasurement, NDArray[np.float64]]:
    each = average_precisions(logits, labels)
    known = [value for value in each if value is not None]
    scores, shown = logits.double().numpy(), labels.numpy() > 0.5
    orders = [_Order.of(scores[:, column], shown[:, column]) for column in range(len(classes))]
    seen = [order for order in orders if order.shown.any()]

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = np.stack([order.average_precision(weights) for order in seen])
        there = np.isfinite(values)
        total = np.where(there, values, 0).sum(0)
        return np.where(there.any(0), total / np.maximum(there.sum(0), 1), np.nan)

    drawn = resampling.values(mean, len(labels)) if seen else np.full(1, np.nan)
    low, high = resampling.interval(drawn)
    measured = SeveralMeasurement(
        images=len(labels),
        mean_average_precision=sum(known) / len(known) if known else None,
        low=low,
        high=high,
        average_precision=dict(zip(classes, each, strict=True)),
        chance=float(shown[:, shown.any(0)].mean()) if known else None,
        f1=_f1(head, logits, shown),
    )
    return measured, drawn


def _f1(head: Head, logits: Tensor, shown: NDArray[np.bool_]) -> float | None:
    """Return the mean F1 over the classes that the images show."""
    assert head.thresholds is not None
    said = (head.probabilities(logits) >= head.thresholds).numpy()
    there = shown.any(0)
    if not there.any():
        return None
    right = (said & shown).sum(0)[there]
    return float((2 * right / (said.sum(0) + shown.sum(0))[there]).mean())


@dataclass(frozen=True, eq=False)
class _Order:
    """The images by the score of one class, highest first, those of equal score as one step.

    `ends` holds for each image the last one of its step.
    """

    order: NDArray[np.intp]
    shown: NDArray[np.bool_]
    ends: NDArray[np.intp]

    @classmethod
    def of(cls, scores: NDArray[np.float64], shown: NDArray[np.bool_]) -> "_Order":
        """Sort images once for all draws."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        ends = last[np.searchsorted(last, np.arange(len(order)))]
        return cls(order, shown[order], ends)

    def average_precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return that of draws `[draws, images]`; not a number where no image shows the class."""
        drawn = weights[:, self.order]
        right = drawn * self.shown
        hits, seen = right.cumsum(1)[:, self.ends], drawn.cumsum(1)[:, self.ends]
        precision = hits / np.maximum(seen, 1e-12)
        total = right.sum(1)
        found: NDArray[np.float64] = np.where(
            total > 0, (precision * right).sum(1) / np.maximum(total, 1e-12), np.nan
        )
        return found
