"""Linear: weights that a person gives, for recipes and for comparison."""

import numpy as np
import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan

Given = list[float | list[float]] | None


def plan(*, weights: Given = None, normalize: bool = True) -> Plan:
    """Ask that every source keeps the weight it was given, twins too."""
    del weights, normalize
    return Plan(merge_twins=False)


def weigh(evidence: Evidence, *, weights: Given = None, normalize: bool = True) -> Mix:
    """Return the given weights, in the order of the sources' names; equal ones if none are given.

    A list in place of a number is a gradient over the backbone's blocks, as in mergekit: its
    values stand at equal distances from the first block to the last, with straight lines between.
    With `normalize` weights are divided by their sum, in every block; without it they must have
    sum 1.
    """
    given = weights or [1.0] * len(evidence)
    if len(given) != len(evidence):
        raise VPromptError(
            f"linear got {len(given)} weights for {len(evidence)} sources: "
            f"{', '.join(evidence.names)}."
        )
    graded = any(isinstance(each, list) for each in given)
    rows = torch.stack([_over_layers(each, evidence.layers if graded else 1) for each in given], 1)
    totals = rows.sum(1, keepdim=True)
    if normalize:
        if bool((totals.abs() < 1e-12).any()):
            where = f" in block {int((totals.abs() < 1e-12).nonzero()[0, 0])}" if graded else ""
            raise VPromptError(
                f"The weights of linear sum to 0{where}, so they cannot be normalised."
            )
        rows = rows / totals
    simplex = bool((rows >= 0).all())
    return Mix(rows.mean(0), simplex=simplex, layers=rows if graded else None)


def _over_layers(given: float | list[float], layers: int) -> Tensor:
    """Return one source's weight in every block."""
    anchors = given if isinstance(given, list) else [given]
    if not anchors:
        raise VPromptError("A weight of linear is a number, or a list of at least one.")
    places = np.linspace(0, len(anchors) - 1, layers)
    return torch.from_numpy(np.interp(places, np.arange(len(anchors)), anchors))
