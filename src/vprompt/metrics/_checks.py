"""Checks that all metrics share."""

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Labels


def contiguous(labels: Labels) -> tuple[Tensor, int]:
    """Return labels as 0, 1, ... without gaps, and how many classes there are: at least two."""
    classes, index = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise VPromptError("A transferability score needs images of at least two classes.")
    return index, len(classes)


def principal(features: Tensor, dimensions: int | None) -> Tensor:
    """Return features about their mean, on their first principal axes if a number is given.

    N images span N - 1 axes at most; on others there is nothing that could be measured.
    """
    centred = features.double() - features.double().mean(0)
    count, width = centred.shape
    if dimensions is None or dimensions >= width:
        return centred
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    return centred @ axes[: min(dimensions, max(count - 1, 1))].T
