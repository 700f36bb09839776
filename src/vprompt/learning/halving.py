"""Halving: settings that lie behind on validation leave, so that the others can be trained longer.

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


class Dropped(VPromptError):
    """Raised in a training that lies behind; `facts` say where and by how much."""

    def __init__(self, facts: dict[str, Any]) -> None:
        behind = "its validation loss was {val_loss:.4g}, rank {rank} of {of}"
        others = "{kept} went on, up to {last_kept:.4g}"
        super().__init__(f"dropped after epoch {{epoch}}: {behind}; {others}".format(**facts))
        self.facts = facts


def rungs(points: int, epochs: int) -> dict[int, int]:
    """Return after which epochs settings are compared, and how many go on.

    The number is halved every time, down to `LAST`, and the epochs are doubled.
    """
    found: dict[int, int] = {}
    times = max(0, math.ceil(math.log2(points / LAST))) if points > LAST else 0
    for done in range(1, times + 1):
        epoch = max(1, round(epochs / 2 ** (times + 1 - done)))
        if epoch < epochs:
            found[epoch] = max(LAST, math.ceil(points / 2**done))
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
            verdict = mine.ask(fleet.RUNG, epoch, (least(history, epoch), epoch, self), _judge)
            if verdict is not None:
                raise Dropped(verdict)


def least(history: Sequence[EpochRecord], epoch: int) -> float:
    """Return the least validation loss up to an epoch, the start left out; infinite if none."""
    losses = [r.val_loss for r in history if 0 < r.epoch <= epoch and r.val_loss is not None]
    return min((loss for loss in losses if not math.isnan(loss)), default=math.inf)


def _judge(asked: Sequence[tuple[float, int, Halving]]) -> list[dict[str, Any] | None]:
    """Say of every member how far it lies behind, or None where it goes on."""
    losses, (_, epoch, own) = [loss for loss, _, _ in asked], asked[0]
    kept = min(own.rungs[epoch], len(asked))
    order = sorted(range(len(asked)), key=lambda row: losses[row])
    found: list[dict[str, Any] | None] = [None] * len(asked)
    for rank, row in enumerate(order[kept:], kept + 1):
        found[row] = {
            "epoch": epoch,
            "val_loss": losses[row],
            "rank": rank,
            "of": len(asked),
            "kept": kept,
            "last_kept": losses[order[kept - 1]],
        }
    return found
