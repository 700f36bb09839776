"""Numbers: what is measured of a number an image: R2 and the mean absolute error."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vprompt.core.types import Numbers
from vprompt.models.heads import Head
from vprompt.results import resampling
from vprompt.results.resampling import Difference


@dataclass(frozen=True)
class NumberMeasurement:
    """R2 on `images` test images, with its 95 % interval, and the mean absolute error with its own.

    R2 is the share of the variance of these images' numbers that is explained: 1 is perfect, 0 is
    always answering their mean, and it may lie below; None where all numbers are the same.
    `mae_of_mean` is the error of always answering their mean. Errors are in the numbers' own unit.
    """

    images: int
    r2: float | None
    low: float | None
    high: float | None
    mae: float
    mae_low: float | None
    mae_high: float | None
    mae_of_mean: float
    gain: Difference | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Judge:
    """Measures candidates on the same images, one after another, each against the first."""

    def __init__(self, labels: Numbers) -> None:
        self.wanted = labels.double().numpy()
        self.first: tuple[str, float | None, NDArray[np.float64]] | None = None

    def __call__(self, name: str, head: Head, logits: Tensor) -> NumberMeasurement:
        """Return what the answers `[images, 1]` of a candidate are worth."""
        del head
        measured, drawn = _judge(logits[:, 0].double().numpy(), self.wanted)
        if self.first is None:
            self.first = name, measured.r2, drawn
            return measured
        over, other, others = self.first
        gain = resampling.difference(over, measured.r2, other, drawn, others)
        return replace(measured, gain=gain)


def _judge(
    said: NDArray[np.float64], wanted: NDArray[np.float64]
) -> tuple[NumberMeasurement, NDArray[np.float64]]:
    centred = wanted - wanted.mean()
    errors, squares = np.abs(said - wanted), (said - wanted) ** 2

    def explained(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        count = weights.sum(1)
        spread = weights @ centred**2 - (weights @ centred) ** 2 / count
        with np.errstate(divide="ignore", invalid="ignore"):
            found: NDArray[np.float64] = 1 - (weights @ squares) / spread
        # A draw of one number over and over has no variance but for rounding.
        return np.where(spread > 1e-12 * np.square(centred).sum(), found, np.nan)

    varies = bool(np.ptp(wanted) > 0)
    count = len(wanted)
    drawn = resampling.values(explained, count) if varies else np.full(1, np.nan)
    off = resampling.values(lambda weights: weights @ errors / weights.sum(1), count)
    (low, high), (mae_low, mae_high) = resampling.interval(drawn), resampling.interval(off)
    measured = NumberMeasurement(
        images=count,
        r2=float(1 - squares.sum() / np.square(centred).sum()) if varies else None,
        low=low,
        high=high,
        mae=float(errors.mean()),
        mae_low=mae_low,
        mae_high=mae_high,
        mae_of_mean=float(np.abs(centred).mean()),
    )
    return measured, drawn
