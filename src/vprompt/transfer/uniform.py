"""Uniform: the plain average of the pool, the baseline every other method must beat."""

import torch

from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix


def weigh(evidence: Evidence) -> Mix:
    """Return 1/M for every source."""
    return Mix(torch.full((len(evidence),), 1 / len(evidence), dtype=torch.float64))
