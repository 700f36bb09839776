"""Checks that all metrics share."""

import torch
from torch import Tensor

from vprompt.errors import VPromptError
from vprompt.types import Labels


def contiguous(labels: Labels) -> tuple[Tensor, int]:
    """Return labels as 0, 1, ... without gaps, and how many classes there are: at least two."""
    classes, index = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise VPromptError("A transferability score needs images of at least two classes.")
    return index, len(classes)


def principal(features: Tensor, dimensions: int | None) -> Tensor:
    """Return features about their mean, on their first principal axes if a number is given."""
    centred = features.double() - features.double().mean(0)
    if dimensions is None or dimensions >= min(centred.shape):
        return centred
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:dimensions].T
