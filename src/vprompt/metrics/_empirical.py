"""Empirical predictors: what probabilities over one set of classes say of labels from another."""

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Labels, SourceProbabilities
from vprompt.metrics._checks import contiguous


def distributions(probabilities: SourceProbabilities) -> Tensor:
    """Return probabilities in float64, rows of sum 1; logits are refused."""
    theta = probabilities.double()
    sums = theta.sum(1)
    if bool((theta < 0).any()) or bool(((sums - 1).abs() > 1e-2).any()):
        raise VPromptError(
            "source_probabilities are distributions over the source's classes, one row per image "
            f"with sum 1, but got rows with sums from {float(sums.min()):.4g} to "
            f"{float(sums.max()):.4g}. Apply a softmax to logits first."
        )
    return theta / sums[:, None]


def joint(probabilities: SourceProbabilities, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Return J `[classes, source classes]`, the probabilities, and every image's row of J.

    J[y, z] is the mean over images of their probability of z where they have label y. Source
    classes that no image can have are left out: a division by their mass would not be defined.
    """
    index, classes = contiguous(labels)
    theta = distributions(probabilities)
    theta = theta[:, theta.sum(0) > 0]
    sums = theta.new_zeros(classes, theta.shape[1]).index_add_(0, index, theta)
    return sums / len(theta), theta, index


def predicted(probabilities: SourceProbabilities, labels: Labels) -> Tensor:
    """Return `[images]`: what the empirical predictor gives to every image's own label, above 0."""
    table, theta, index = joint(probabilities, labels)
    return ((table / table.sum(0))[index] * theta).sum(1)


def negative_conditional_entropy(table: Tensor) -> float:
    """Return -H(row | column) of a joint distribution, in nats; empty cells count nothing."""
    table = table[:, table.sum(0) > 0]
    return float(torch.special.xlogy(table, table / table.sum(0)).sum())
