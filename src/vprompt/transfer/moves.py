"""Moves: every source counts alike, and the images choose how far to go along what they learned.

The direction is the plain mean of the sources' moves, so no source has to be looked at; what is
judged on the training images is the scale, and whether one sum or several prompts side by side
serve the task better (docs/moves.md).

Reference: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089, for
sums of what was learned with one scale.
"""

import torch

from vprompt.core.settings import Settings, takes
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan


class Moves(Settings):
    """The settings.

    `members` is how many parts of the pool an ensemble has at most, `climb` for how many steps the
    coefficients of one sum then climb the true loss.
    """

    members: int = 4
    climb: int = 0


@takes(Moves)
def plan(settings: Moves) -> Plan:
    """Ask for a sum of moves, and for no look at the sources themselves."""
    return Plan(
        look=False,
        move_scale="auto",
        form="auto",
        members=settings.members,
        climb=settings.climb,
    )


@takes(Moves)
def weigh(evidence: Evidence, settings: Moves) -> Mix:
    """Return 1/M for every source."""
    del settings  # for what becomes of the sum
    return Mix(torch.full((len(evidence),), 1 / len(evidence), dtype=torch.float64))
