"""Linear: weights that a person gives, for recipes and for comparison."""

import numpy as np
import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.settings import Settings, takes
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan


class Linear(Settings):
    """The settings.

    `weights` are in the order of the sources' names. A list in place of a number is a gradient over
    the backbone's blocks, as in mergekit: its values stand at equal distances from the first block
    to the last, with straight lines between. With `normalize` weights are divided by their sum, in
    every block; without it they must have sum 1.
    """

    weights: list[float | list[float]] | None = None
    normalize: bool = True


@takes(Linear)
def plan(settings: Linear) -> Plan:
    """Ask that every source keeps the weight it was given, twins too."""
    del settings
    return Plan(merge_twins=False)


@takes(Linear)
def weigh(evidence: Evidence, settings: Linear) -> Mix:
    """Return the given weights; equal ones if none are given."""
    given = settings.weights or [1.0] * len(evidence)
    if len(given) != len(evidence):
        raise VPromptError(
            f"linear got {len(given)} weights for {len(evidence)} sources: "
            f"{', '.join(evidence.names)}."
        )
    graded = any(isinstance(each, list) for each in given)
    rows = torch.stack([_over_layers(each, evidence.layers if graded else 1) for each in given], 1)
    totals = rows.sum(1, keepdim=True)
    if settings.normalize:
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
