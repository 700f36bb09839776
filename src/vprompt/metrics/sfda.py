"""SFDA: how surely shrunk discriminant analysis knows each image's class, after mixing in others.

Computed as the released code does: the first round's posteriors pass a second softmax before they
say how far an image is drawn to the other classes, and the second round keeps the first's
shrinkage. Features are taken in their own scale, which the shrinkage depends on.

Reference: Shao et al., "Not All Models Are Equal: Predicting Model Transferability in a
Self-challenging Fisher Space", ECCV 2022, arXiv 2207.03036.
"""

import math

import torch
from torch import Tensor

from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous

RANGE = (0.0, 1.0)
_LEAST = 1e-10


def score(features: Features, labels: Labels) -> float:
    """Return the mean probability of the true class, 0 to 1; no logarithm, as in the code."""
    index, classes = contiguous(labels)
    data = features.double() - features.double().mean(0)
    within = _within(data, index, classes)
    shrinkage = max(math.exp(-5 * _largest_eigenvalue(within)), _LEAST)
    # A sure posterior would leave its image where it is; softened, every image moves.
    softened = _posteriors(data, index, classes, shrinkage).softmax(1)
    mixed = _mixed(data, index, classes, softened.gather(1, index[:, None]))
    known = _posteriors(mixed, index, classes, shrinkage).gather(1, index[:, None])
    return float(known.mean())


def _mixed(data: Tensor, index: Tensor, classes: int, own: Tensor) -> Tensor:
    """Return every image drawn towards the other classes, the more the less sure its class is."""
    means = _means(data, index, classes)
    others = (means.sum(0) - means[index]) / (classes - 1)
    return own * data + (1 - own) * others


def _posteriors(data: Tensor, index: Tensor, classes: int, shrinkage: float) -> Tensor:
    """Return class probabilities `[images, classes]` under discriminant analysis."""
    means, middle = _means(data, index, classes), data.mean(0)
    within = _within(data, index, classes)
    # Classes that do not vary at all are told apart by any distance between them.
    mean_variance = max(float(within.trace()) / len(within), 1e-30)
    shrunk = (1 - shrinkage) * within
    shrunk.diagonal().add_(shrinkage * mean_variance)
    weights = torch.linalg.solve(shrunk, (means - middle).T)
    shares = torch.bincount(index).double() / len(data)
    bias = shares.log() - ((means - middle) * weights.T).sum(1) / 2
    return ((data - middle) @ weights + bias).softmax(1)


def _means(data: Tensor, index: Tensor, classes: int) -> Tensor:
    return torch.stack([data[index == label].mean(0) for label in range(classes)])


def _within(data: Tensor, index: Tensor, classes: int) -> Tensor:
    """Return the covariance of images about the mean of their class, over the number of images."""
    around = data - _means(data, index, classes)[index]
    return around.T @ around / len(data)


def _largest_eigenvalue(matrix: Tensor) -> float:
    """Return the released estimate: six products with the matrix, from the sums of its rows.

    It is below the eigenvalue where two are close, and the shrinkage is exponential in it.
    """
    one = matrix.sum(1)
    if not one.any():
        return float(torch.linalg.eigvalsh(matrix)[-1])
    other = one
    for _ in range(3):
        other = torch.nn.functional.normalize(matrix @ one, dim=0, eps=0.0)
        one = torch.nn.functional.normalize(matrix @ other, dim=0, eps=0.0)
    return float(one @ matrix @ other)
