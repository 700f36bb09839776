"""Resampling: intervals of what has no formula for one, over test images drawn anew.

All candidates see the same draws, so that the difference of two has an interval of its own.

Reference: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vprompt.core.randomness import numpy_stream

DRAWS = 500
_PART = 50  # draws at a time

# Weights `[draws, images]`, how often each image was drawn, become a value for each draw.
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Difference:
    """A value less that of another candidate on the same images, with its 95 % interval."""

    over: str
    difference: float
    low: float
    high: float


def draws(images: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each image is drawn, some draws at a time, always the same."""
    rng = numpy_stream(0, "draws of test images")
    for begin in range(0, DRAWS, _PART):
        count = min(_PART, DRAWS - begin)
        yield rng.multinomial(images, np.full(images, 1 / images), size=count).astype(float)


def values(statistic: Statistic, images: int) -> NDArray[np.float64]:
    """Return a statistic's value for every draw."""
    return np.concatenate([statistic(weights) for weights in draws(images)])


def interval(found: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the 2.5 % and 97.5 % points of values; None where no draw defines one."""
    known = found[np.isfinite(found)]
    if not len(known):
        return None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def difference(
    over: str,
    value: float | None,
    other: float | None,
    drawn: NDArray[np.float64],
    others: NDArray[np.float64],
) -> Difference | None:
    """Return how much a candidate gains over another; None where a value is not defined."""
    low, high = interval(drawn - others)
    if value is None or other is None or low is None or high is None:
        return None
    return Difference(over, value - other, low, high)
