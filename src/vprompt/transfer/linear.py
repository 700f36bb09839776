"""Linear: weights that a person gives, for recipes and for comparison."""

import torch

from vprompt.errors import VPromptError
from vprompt.evidence import Evidence
from vprompt.mix import Mix, Plan


def plan(*, weights: list[float] | None = None, normalize: bool = True) -> Plan:
    """Ask that every source keeps the weight it was given, twins too."""
    del weights, normalize
    return Plan(merge_twins=False)


def weigh(evidence: Evidence, *, weights: list[float] | None = None, normalize: bool = True) -> Mix:
    """Return the given weights, in the order of the sources' names; equal ones if none are given.

    With `normalize` they are divided by their sum; without it they must have sum 1.
    """
    given = torch.tensor(weights or [1.0] * len(evidence), dtype=torch.float64)
    if len(given) != len(evidence):
        raise VPromptError(
            f"linear got {len(given)} weights for {len(evidence)} sources: "
            f"{', '.join(evidence.names)}."
        )
    total = float(given.sum())
    if normalize:
        if abs(total) < 1e-12:
            raise VPromptError("The weights of linear sum to 0, so they cannot be normalised.")
        given = given / total
    return Mix(given, simplex=bool((given >= 0).all()))
