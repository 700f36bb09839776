"""Measured: what a recorded measurement is of, and its words: accuracy, mAP or R2.

Records and artefacts hold measurements as plain values; which kind one is, its keys say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """One kind of measurement: the key of its value, what it is called, and its best value.

    `share` says that it lies between 0 and 1 and is said in per cent.
    """

    key: str
    name: str
    share: bool = True

    def text(self, value: float | None) -> str:
        """Return a value as people read it."""
        if value is None:
            return "not defined"
        return f"{100 * value:.1f} %" if self.share else f"{value:.3f}"

    def points(self, difference: float) -> str:
        """Return a difference of two values, with its sign and without a unit."""
        return f"{100 * difference:+.1f}" if self.share else f"{difference:+.3f}"


ACCURACY = Measure("acc1", "accuracy")
PRECISION = Measure("mean_average_precision", "mAP")
EXPLAINED = Measure("r2", "R2", share=False)
ALL = (ACCURACY, PRECISION, EXPLAINED)


def of(found: Found) -> Measure:
    """Return which kind of measurement a record holds."""
    return next((each for each in ALL if each.key in found), ACCURACY)


def value(found: Found) -> float | None:
    """Return the value of a measurement."""
    given = found.get(of(found).key)
    return None if given is None else float(given)


def short(found: Found) -> str:
    """Return `87.5 %`, `mAP 81.2 %` or `R2 0.830`; an accuracy needs no name."""
    kind = of(found)
    said = kind.text(value(found))
    return said if kind is ACCURACY else f"{kind.name} {said}"


def interval(found: Found) -> str:
    """Return the 95 % interval of a measurement."""
    kind = of(found)
    if found.get("low") is None:
        return ""
    if kind.share:
        return f"{100 * found['low']:.1f} to {100 * found['high']:.1f} %"
    return f"{found['low']:.3f} to {found['high']:.3f}"


def gain(found: Found) -> str:
    """Return the gain over another candidate, with its interval; nothing where there is none."""
    kind, given = of(found), found.get("gain")
    if not given:
        return ""
    low, high = kind.points(given["low"]), kind.points(given["high"])
    return f"{kind.points(given['difference'])} ({low} to {high})"


def is_sound(found: Any) -> bool:
    """Say whether what a stranger says of a result has the form of one."""
    if not isinstance(found, dict):
        return False
    given, kind = found.get(of(found).key), of(found)
    if kind is not ACCURACY and given is None and kind.key in found:
        return True
    if not isinstance(given, int | float) or isinstance(given, bool):
        return False
    return given <= 1 and (given >= 0 or not kind.share)
