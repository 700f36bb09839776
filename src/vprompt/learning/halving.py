"""Halving: settings that lie behind on validation leave, so that the others can be trained longer.

Published is to compare at once and to drop a half each time. But the rate of the first steps only
warms up, and all settings are still nearly equal: what is compared there is noise. So the first
comparison waits for a fifth of the epochs, and drops more. Settings are compared by the mean of
two ranks on validation, of the least loss and of the best quality (accuracy, or a goal's measure):
of few images each alone is more luck than both.

Reference: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016, arXiv 1502.07943.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vprompt.core import fleet
from vprompt.core.errors import VPromptError
from vprompt.learning.checkpoint import EpochRecord

LAST = 2  # settings that are trained to the end
_FIRST, _SECOND = 0.2, 0.5  # shares of the epochs after which settings are compared


class Dropped(VPromptError):
    """Raised in a training that lies behind; `facts` say where and by how much."""

    def __init__(self, facts: dict[str, Any]) -> None:
        measured = [facts["val_quality"], facts["val_loss"]]
        quality, loss = ("none" if v is None else f"{v:.4g}" for v in measured)
        reached = f"{quality} at a loss of {loss} on validation"
        behind = f"rank {facts['rank']} of {facts['of']}; {facts['kept']} went on"
        super().__init__(f"dropped after epoch {facts['epoch']}: {reached}, {behind}")
        self.facts = facts


def rungs(points: int, epochs: int) -> dict[int, int]:
    """Return after which epochs settings are compared, and how many go on.

    First the square root of their number goes on, and `LAST` of them to the end.
    """
    found, left = {}, points
    for share, kept in ((_FIRST, max(LAST, math.isqrt(points))), (_SECOND, LAST)):
        epoch = max(1, round(share * epochs))
        if epoch < epochs and kept < left:
            found[epoch] = left = kept
    return found


def trainings(points: int, epochs: int) -> float:
    """Return how many whole trainings a halved grid costs."""
    left, done, cost = points, 0, 0
    for epoch, kept in [*sorted(rungs(points, epochs).items()), (epochs, 0)]:
        cost, left, done = cost + left * (epoch - done), kept, epoch
    return cost / epochs if epochs else float(points)


@dataclass
class Halving:
    """What one member of a fleet asks after every epoch; all members have the same rungs.

    A run that was continued is asked at every rung once more, so that all decide as before.
    """

    rungs: dict[int, int]
    asked: int = 0

    def __call__(self, history: Sequence[EpochRecord]) -> None:
        """Wait for the others at a rung; raises Dropped where this member lies behind."""
        mine = fleet.member()
        for epoch in sorted(self.rungs):
            if mine is None or epoch <= self.asked or epoch > history[-1].epoch:
                continue
            self.asked = epoch
            reached = (SoFar.up_to(epoch, history), epoch, self)
            verdict = mine.ask(fleet.RUNG, epoch, reached, _judge)
            if verdict is not None:
                raise Dropped(verdict)


@dataclass(frozen=True)
class SoFar:
    """What a member reached up to a rung, the start left out: the best of each, of any epoch."""

    loss: float
    quality: float

    @classmethod
    def up_to(cls, epoch: int, history: Sequence[EpochRecord]) -> "SoFar":
        """Return the least loss and the best quality; infinite where there is none."""
        seen = [record for record in history if 0 < record.epoch <= epoch]
        losses = [r.val_loss for r in seen if r.val_loss is not None and not math.isnan(r.val_loss)]
        qualities = [r.quality for r in seen if r.quality is not None]
        return cls(min(losses, default=math.inf), max(qualities, default=-math.inf))


def _judge(asked: Sequence[tuple[SoFar, int, Halving]]) -> list[dict[str, Any] | None]:
    """Say of every member how far it lies behind, or None where it goes on."""
    reached, (_, epoch, own) = [each for each, _, _ in asked], asked[0]
    kept = min(own.rungs[epoch], len(asked))
    of_loss = _ranks([each.loss for each in reached])
    of_quality = _ranks([-each.quality for each in reached])

    def behind(row: int) -> tuple[float, float]:
        return of_loss[row] + of_quality[row], reached[row].loss

    order = sorted(range(len(asked)), key=behind)
    found: list[dict[str, Any] | None] = [None] * len(asked)
    for rank, row in enumerate(order[kept:], kept + 1):
        found[row] = {
            "epoch": epoch,
            "val_loss": reached[row].loss,
            "val_quality": reached[row].quality,
            "rank": rank,
            "of": len(asked),
            "kept": kept,
        }
    return found


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of every value, the smallest first; equal ones share their mean rank."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]
