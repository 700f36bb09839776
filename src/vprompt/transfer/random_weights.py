"""Random weights: a draw from a symmetric Dirichlet distribution, the control for any weighing."""

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import numpy_stream
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix


def weigh(evidence: Evidence, *, seed: int = 0, concentration: float = 1.0) -> Mix:
    """Return weights that depend on the seed and the sources' names alone.

    `concentration` 1 makes all mixes equally likely; larger values come nearer to the average.
    """
    if not concentration > 0:
        raise VPromptError(
            f"random_weights needs a concentration above 0, but got {concentration}."
        )
    # A Dirichlet draw is one gamma draw per source, by its share of the sum.
    draws = [
        numpy_stream(seed, f"random weight of {name}").gamma(concentration)
        for name in evidence.names
    ]
    weights = torch.tensor(draws, dtype=torch.float64).clamp_min(1e-300)
    return Mix(weights / weights.sum())
