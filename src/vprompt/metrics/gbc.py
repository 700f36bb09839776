"""GBC: minus how far classes overlap, as Gaussians on the features' principal axes.

Reference: Pandy et al., "Transferability Estimation using Bhattacharyya Class Separability", CVPR
2022, arXiv 2111.12780.
"""

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous, principal

RANGE = (-float("inf"), float("inf"))
COVARIANCES = ("spherical", "diagonal", "full")
CONVENTIONS = ("axes", "published")
_AXES, _FLOOR = 64, 1e-4


def score(
    features: Features,
    labels: Labels,
    *,
    covariance: str = "spherical",
    convention: str = "axes",
    dimensions: int | None = None,
    log: bool | None = None,
) -> float:
    """Return -log(sum of exp(-D) over ordered pairs of classes); higher is better.

    D is the Bhattacharyya distance on the first `dimensions` principal axes, 64 by default. With
    many dimensions the sum is 0 for every source, so its logarithm is returned, which ranks the
    same; `log=False` returns minus the sum.

    `convention="published"` returns minus the sum that the released code computes: on the features
    as they are, of variances over n, each at least 1e-4 before a class's are averaged, and with
    the logarithm of a spherical variance counted once instead of once per dimension.
    """
    if covariance not in COVARIANCES:
        raise VPromptError(f"covariance is one of {', '.join(COVARIANCES)}, not {covariance!r}.")
    if convention not in CONVENTIONS:
        raise VPromptError(f"convention is one of {', '.join(CONVENTIONS)}, not {convention!r}.")
    if convention == "published":
        distance = _published(features.double(), labels, covariance, dimensions)
        logarithm = bool(log)
    else:
        distance = _distances(features, labels, covariance, dimensions)
        logarithm = log is None or log
    others = ~torch.eye(len(distance), dtype=torch.bool)
    overlap = torch.logsumexp(-distance[others], 0)
    return float(-overlap if logarithm else -overlap.exp())


def _distances(
    features: Features, labels: Labels, covariance: str, dimensions: int | None
) -> Tensor:
    """Return the distance of every pair of classes, on principal axes."""
    data = principal(features, _AXES if dimensions is None else dimensions)
    index, classes = contiguous(labels)
    groups = [data[index == label] for label in range(classes)]
    means = torch.stack([group.mean(0) for group in groups])
    spreads = torch.stack([_spread(group, covariance) for group in groups])
    return _full(means, spreads) if covariance == "full" else _axes(means, spreads)


def _published(data: Tensor, labels: Labels, covariance: str, dimensions: int | None) -> Tensor:
    """Return the distance of every pair of classes as the released code has it."""
    if covariance == "full":
        raise VPromptError("The released code has no full covariance. Use spherical or diagonal.")
    if dimensions is not None:
        raise VPromptError("The released code takes no principal axes. Leave out dimensions.")
    index, classes = contiguous(labels)
    groups = [data[index == label] for label in range(classes)]
    means = torch.stack([group.mean(0) for group in groups])
    variances = torch.stack([group.var(0, unbiased=False).clamp_min(_FLOOR) for group in groups])
    if covariance == "diagonal":
        return _axes(means, variances)
    variances = variances.mean(1)
    middle = (variances[:, None] + variances[None]) / 2
    apart = (means[:, None] - means[None]).square().sum(2) / middle
    logs = middle.log() - (variances.log()[:, None] + variances.log()[None]) / 2
    return apart / 8 + logs / 2


def _spread(group: Tensor, covariance: str) -> Tensor:
    """Return variances `[dim]`, or the covariance `[dim, dim]`, with a floor below them."""
    centred = group - group.mean(0)
    freedom = max(len(group) - 1, 1)
    if covariance == "full":
        values, vectors = torch.linalg.eigh(centred.T @ centred / freedom)
        return (vectors * values.clamp_min(_FLOOR)) @ vectors.T
    variances = centred.square().sum(0) / freedom
    if covariance == "spherical":
        variances = variances.mean().expand_as(variances)
    return variances.clamp_min(_FLOOR)


def _axes(means: Tensor, variances: Tensor) -> Tensor:
    """Return all pairs' distances where covariances are diagonal."""
    middle = (variances[:, None] + variances[None]) / 2
    apart = (means[:, None] - means[None]).square() / middle
    logs = middle.log() - (variances.log()[:, None] + variances.log()[None]) / 2
    return apart.sum(2) / 8 + logs.sum(2) / 2


def _full(means: Tensor, covariances: Tensor) -> Tensor:
    """Return all pairs' distances, one row of pairs at a time."""
    halves = torch.linalg.slogdet(covariances)[1] / 2
    rows = []
    for mean, own, half in zip(means, covariances, halves, strict=True):
        middle = (own + covariances) / 2
        gap = (means - mean)[:, :, None]
        apart = (gap * torch.linalg.solve(middle, gap)).sum((1, 2))
        rows.append(apart / 8 + (torch.linalg.slogdet(middle)[1] - half - halves) / 2)
    return torch.stack(rows)
