"""Linear algebra that several scores share: class means, shrinkage; float64 throughout.

scikit-learn and scipy are imported where they are used: loading them takes most of a second.
"""

import math

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Labels, SourceFeatures, SourceGradients, Weights

MINIMUM_SHRINKAGE = 1e-3


def assignment(nearness: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of the one-to-one assignment of largest summed nearness.

    nearness: `[rows, columns]`; the smaller side is assigned whole (Hungarian algorithm).
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-nearness.numpy())
    return torch.as_tensor(rows), torch.as_tensor(columns)


def shrinkage_intensity(centred: Features, shrinkage: float | str | None) -> float:
    """Return the intensity for centred rows: a number in [0, 1) as it is, or by a rule's name.

    The rules are `ledoit_wolf`, for which None stands too, and `oas`.
    """
    if shrinkage is None or shrinkage == "ledoit_wolf":
        return ledoit_wolf_intensity(centred)
    if shrinkage == "oas":
        return oas_intensity(centred.T @ centred / len(centred), len(centred))
    check_shrinkage(shrinkage)
    return float(shrinkage)


def check_shrinkage(shrinkage: float | str | None) -> None:
    """Raise VPromptError unless it is a rule's name, a number in [0, 1), or None."""
    if shrinkage in (None, "ledoit_wolf", "oas"):
        return
    if isinstance(shrinkage, str) or not 0 <= shrinkage < 1:
        raise VPromptError(
            f"Got shrinkage={shrinkage!r}, but it is `ledoit_wolf`, `oas` or a number in [0, 1)."
        )


def class_means_factor(centred: Features, labels: Labels) -> Tensor:
    """Return Z `[classes present, dim]`, row c = sqrt(n_c / (N - 1)) * mean of class c.

    Z'Z is the between-class covariance; classes without an image have no row.
    """
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise VPromptError("A transferability score needs images of at least two classes.")
    sums = centred.new_zeros(len(classes), centred.shape[1]).index_add_(0, index, centred)
    return sums / (counts.to(centred) * (len(centred) - 1)).sqrt()[:, None]


def hscore_and_slope(centred: Features, labels: Labels, rho: float) -> tuple[float, Features]:
    """Return the shrunk H-score of centred features and its gradient with respect to them.

    H = (1 - rho) tr(S^-1 Z'Z), S = (1 - rho) Sigma + rho tr(Sigma)/h I, with rho held fixed. Raises
    VPromptError where S cannot be factorised.
    """
    count, width = centred.shape
    _, index, counts = labels.unique(return_inverse=True, return_counts=True)
    factor = class_means_factor(centred, labels)
    shrunk = centred.T @ centred * ((1 - rho) / (count - 1))
    # The trace is that of Sigma, of which S holds only (1 - rho).
    shrunk.diagonal().add_(rho / (1 - rho) * shrunk.trace() / width)
    solved = torch.cholesky_solve(factor.T, cholesky(shrunk))
    value = (1 - rho) * (factor.T * solved).sum()
    own_class = (solved / counts.to(solved).sqrt()).T[index] / math.sqrt(count - 1)
    slope = own_class - (1 - rho) / (count - 1) * (centred @ solved) @ solved.T
    slope -= rho / (width * (count - 1)) * solved.square().sum() * centred
    return float(value), 2 * (1 - rho) * slope


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor, or raise VPromptError that says what to do."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise VPromptError(
            "The covariance of the features cannot be inverted: some directions hardly vary. Use a "
            "larger shrinkage, or score=trace_ratio."
        )
    return factor


def ledoit_wolf_intensity(centred: Features) -> float:
    """Return the Ledoit-Wolf shrinkage of centred rows, at least `MINIMUM_SHRINKAGE`.

    Reference: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices", 2004; computed by scikit-learn.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    return _bounded(float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True)))


def oas_intensity(covariance: Tensor, count: int) -> float:
    """Return the oracle-approximating shrinkage of a covariance of `count` centred rows.

    It needs the covariance alone (divided by `count`), so it works on streamed statistics.

    Reference: Chen et al., "Shrinkage algorithms for MMSE covariance estimation", 2010, in the
    form that scikit-learn computes.
    """
    width = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    below = (count + 1) * (square - trace**2 / width)
    return _bounded(1.0 if below <= 0 else (square + trace**2) / below)


def _bounded(rho: float) -> float:
    return min(max(rho, MINIMUM_SHRINKAGE), 1 - MINIMUM_SHRINKAGE)


def unit_rows(matrix: Tensor) -> Tensor:
    """Return rows of unit length; a row of zeros stays zero."""
    return matrix / matrix.norm(dim=1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)


def weighted_sum(weights: Weights, features: SourceFeatures) -> Features:
    """Return sum_s weights[s] features[s], `[images, width]`.

    As a product with a matrix of a row per source, and so is `per_source`: einsum copies all of
    the features at every call, which takes longer than everything else that a solver does.
    """
    return (weights @ features.flatten(1)).reshape(features.shape[1:])


def per_source(features: SourceFeatures, slope: Features) -> Tensor:
    """Return the inner product of each source's features with `slope`, `[sources]`."""
    return features.flatten(1) @ slope.flatten()


def centred_cosine(first: Features, second: Features) -> float:
    """Return the cosine of two sets of features of the same images, each less its mean, -1 to 1."""
    one, two = (each.double() - each.double().mean(0) for each in (first, second))
    return float((one * two).sum() / (one.norm() * two.norm()).clamp_min(1e-30))


def centred_kernel_alignment(one: Features, other: Features) -> float:
    """Return how alike two sets of features of the same images are, whatever their axes: 0 to 1.

    Reference: Kornblith et al., "Similarity of neural network representations revisited", 2019.
    """
    a, b = one.double() - one.double().mean(0), other.double() - other.double().mean(0)
    below = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / below.clamp_min(1e-30))


def cosine_matrix(gradients: SourceGradients | SourceFeatures) -> Tensor:
    """Return K `[sources, sources]`: cosines between what each source has, float64."""
    units = unit_rows(gradients.double().flatten(1))
    gram = units @ units.T
    return (gram + gram.T) / 2
