"""LogME: the log evidence of Bayesian ridge regression onto one-hot labels, per image.

Correct for fewer images than dimensions, where widely copied code is not: of the log-determinant
only the terms of the features' rank differ between prior and posterior.

Reference: You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning",
ICML 2021, arXiv 2102.11005.
"""

import math

import torch
from torch import Tensor

from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous

RANGE = (-float("inf"), float("inf"))
_ITERATIONS, _TOLERANCE, _TINY = 100, 1e-3, 1e-12


def score(features: Features, labels: Labels) -> float:
    """Return the mean over classes of evidence / images: unbounded, higher is better."""
    data = features.double()
    index, classes = contiguous(labels)
    left, values, _ = torch.linalg.svd(data, full_matrices=False)
    kept = values > values.max() * max(data.shape) * torch.finfo(data.dtype).eps
    left, squares = left[:, kept], values[kept].square()
    evidences = []
    for label in range(classes):
        target = (index == label).double()
        projected = (left.T @ target).square()
        evidences.append(_evidence(squares, projected, target.square().sum(), len(data)))
    return float(torch.stack(evidences).mean()) / len(data)


def _evidence(squares: Tensor, projected: Tensor, length: Tensor, count: int) -> Tensor:
    """Return the largest evidence of one column of labels.

    `squares` are the features' squared singular values, `projected` the column's squared parts
    along the left singular vectors, `length` its squared norm.
    """
    outside = (length - projected.sum()).clamp_min(0)
    ratio = squares.new_tensor(1.0)  # a / b: precision of the weights by that of the noise
    for _ in range(_ITERATIONS):
        alpha, beta = _precisions(squares, projected, outside, length, ratio, count)
        before, ratio = ratio, alpha / beta
        if abs(ratio - before) <= _TOLERANCE * before:
            break
    alpha, beta = _precisions(squares, projected, outside, length, ratio, count)
    return log_evidence(squares, projected, outside, alpha, beta, count)


def log_evidence(
    squares: Tensor, projected: Tensor, outside: Tensor, alpha: Tensor, beta: Tensor, count: int
) -> Tensor:
    """Return log N(y; 0, I/beta + F F'/alpha), in the coordinates of the singular vectors.

    `outside` is the squared norm of what of y lies in no direction of the features. Of the
    log-determinant the terms beyond the rank cancel, so only as many as there are `squares` count.
    """
    weights, residual = _norms(squares, projected, outside, alpha / beta)
    return (
        len(squares) / 2 * alpha.log()
        + count / 2 * beta.log()
        - (alpha + beta * squares).log().sum() / 2
        - beta / 2 * residual
        - alpha / 2 * weights
        - count / 2 * math.log(2 * math.pi)
    )


def _precisions(
    squares: Tensor,
    projected: Tensor,
    outside: Tensor,
    length: Tensor,
    ratio: Tensor,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Return a and b of the next step; the norms below them are never exactly 0.

    Both floors scale with what they stand for, so that the unit of the features does not matter.
    """
    weights, residual = _norms(squares, projected, outside, ratio)
    gamma = (squares / (squares + ratio)).sum()
    beta = (count - gamma).clamp_min(_TINY) / residual.clamp_min(_TINY * float(length))
    if not len(squares):  # features of 0: there are no weights to be precise about
        return torch.ones_like(beta), beta
    return gamma / weights.clamp_min(_TINY * float(length / squares.max())), beta


def _norms(
    squares: Tensor, projected: Tensor, outside: Tensor, ratio: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the squared norms of the posterior mean of the weights and of its residual."""
    weights = (squares * projected / (squares + ratio).square()).sum()
    residual = (projected / (1 + squares / ratio).square()).sum() + outside
    return weights, residual
