"""SFDA: how surely shrunk discriminant analysis knows each image's class, after mixing in others.

Reference: Shao et al., "Not All Models Are Equal: Predicting Model Transferability in a
Self-challenging Fisher Space", ECCV 2022, arXiv 2207.03036.
"""

import math

import torch
from torch import Tensor

from vprompt.metrics._checks import contiguous
from vprompt.types import Features, Labels

RANGE = (0.0, 1.0)
_LEAST = 1e-10


def score(features: Features, labels: Labels) -> float:
    """Return the mean probability of the true class, 0 to 1.

    Features are first divided by their root mean square, on which the published shrinkage
    exp(-5 lambda_max) would otherwise collapse.
    """
    index, classes = contiguous(labels)
    data = features.double() - features.double().mean(0)
    data = data / data.square().mean().sqrt().clamp_min(1e-30)
    probabilities = _posteriors(data, index, classes)
    own = probabilities.gather(1, index[:, None])
    return (
        _posteriors(_mixed(data, index, classes, own), index, classes)
        .gather(1, index[:, None])
        .mean()
        .item()
    )


def _mixed(data: Tensor, index: Tensor, classes: int, own: Tensor) -> Tensor:
    """Return every image drawn towards the other classes, the more the less sure its class is."""
    means = torch.stack([data[index == label].mean(0) for label in range(classes)])
    others = (means.sum(0) - means[index]) / (classes - 1)
    return own * data + (1 - own) * others


def _posteriors(data: Tensor, index: Tensor, classes: int) -> Tensor:
    """Return class probabilities under discriminant analysis with the published shrinkage."""
    counts = torch.bincount(index).double()
    middle = data.mean(0)
    means = torch.stack([data[index == label].mean(0) for label in range(classes)])
    within = (data - means[index]).T @ (data - means[index]) / len(data)
    shrinkage = max(math.exp(-5 * float(torch.linalg.eigvalsh(within)[-1])), _LEAST)
    identity = torch.eye(data.shape[1]).double()
    shrunk = (1 - shrinkage) * within + shrinkage * within.trace() / len(within) * identity
    shrunk = shrunk + _LEAST * identity
    weights = torch.linalg.solve(shrunk, (means - middle).T)
    bias = (counts / len(data)).log() - ((means - middle) * weights.T).sum(1) / 2
    return ((data - middle) @ weights + bias).softmax(1)
