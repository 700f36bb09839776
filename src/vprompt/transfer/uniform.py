"""Uniform: the plain average of the pool, the baseline every other method must beat."""

import torch

from vprompt.evidence import Evidence
from vprompt.types import Weights


def weigh(evidence: Evidence) -> Weights:
    """Return 1/M for every source."""
    return torch.full((len(evidence),), 1 / len(evidence), dtype=torch.float64)
