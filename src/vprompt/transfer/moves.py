"""Moves: every source counts alike, and the images choose how far to go along what they learned.

The direction is the plain mean of the sources' moves, so no source has to be looked at; what is
judged on the training images is the scale, and whether one sum or several prompts side by side
serve the task better (docs/moves.md).

Reference: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089, for
sums of what was learned with one scale.
"""

import torch

from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan


def plan(*, members: int = 4, climb: int = 0) -> Plan:
    """Ask for a sum of moves, and for no look at the sources themselves."""
    return Plan(look=False, move_scale="auto", form="auto", members=members, climb=climb)


def weigh(evidence: Evidence, *, members: int = 4, climb: int = 0) -> Mix:
    """Return 1/M for every source.

    `members` is how many parts of the pool an ensemble has at most, `climb` for how many steps the
    coefficients of one sum then climb the true loss.
    """
    del members, climb  # what becomes of the sum
    return Mix(torch.full((len(evidence),), 1 / len(evidence), dtype=torch.float64))
