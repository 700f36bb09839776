"""Answers: what a head says of one image, as one class, several classes, or a number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vprompt.data.targets import NUMBER, SEVERAL
from vprompt.models.heads import Head

NONE = "[]"  # no class at all, as a list of images writes it


@dataclass(frozen=True)
class Answered:
    """What an artefact says of one image.

    `label` is the most probable class, and `probabilities` are those of all. Of several classes
    `labels` holds those that are at least as probable as their thresholds, `label` their names with
    `|` between them, and `probability` is that of the most probable. A number is in `value`, and
    has no probability: `label` is its text, and `probability` not a number.
    """

    label: str
    probability: float
    probabilities: dict[str, float] = field(default_factory=dict)
    labels: dict[str, float] | None = None
    value: float | None = None

    def shown(self) -> tuple[str, str]:
        """Return what a person reads: a label, and how sure it is."""
        if self.value is not None:
            return self.label, ""
        if self.labels is None:
            return self.label, f"{self.probability:.3f}"
        return self.label, "|".join(f"{share:.3f}" for share in self.labels.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values: those that this kind of answer has."""
        if self.value is not None:
            return {"value": self.value}
        if self.labels is not None:
            return {"labels": dict(self.labels), "probabilities": dict(self.probabilities)}
        return {
            "label": self.label,
            "probability": self.probability,
            "probabilities": dict(self.probabilities),
        }


def answered(head: Head, classes: Sequence[str], outputs: Sequence[float]) -> Answered:
    """Return the answer of a head: `outputs` are probabilities, or the one number."""
    if head.target == NUMBER:
        value = float(outputs[0])
        return Answered(f"{value:.6g}", math.nan, value=value)
    shares = dict(zip(classes, outputs, strict=True))
    best = max(shares, key=shares.__getitem__)
    if head.target == SEVERAL:
        assert head.thresholds is not None
        limits = head.thresholds.tolist()
        kept = [n for n, limit in zip(classes, limits, strict=True) if shares[n] >= limit]
        kept.sort(key=lambda name: -shares[name])
        labels = {name: shares[name] for name in kept}
        return Answered("|".join(kept) or NONE, shares[best], shares, labels)
    return Answered(best, shares[best], shares)
