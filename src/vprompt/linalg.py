"""Linear algebra that several scores share: class means, shrinkage; float64 throughout."""

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from vprompt.errors import VPromptError
from vprompt.types import Features, Labels, SourceGradients

MINIMUM_SHRINKAGE = 1e-3


def shrinkage_intensity(centred: Features, shrinkage: float | str | None) -> float:
    """Return the intensity for centred rows: a number in [0, 1) as it is, or `ledoit_wolf`.

    None stands for `ledoit_wolf`.
    """
    if shrinkage is None or shrinkage == "ledoit_wolf":
        return ledoit_wolf_intensity(centred)
    if isinstance(shrinkage, str) or not 0 <= shrinkage < 1:
        raise VPromptError(
            f"Got shrinkage={shrinkage!r}, but it is `ledoit_wolf` or a number in [0, 1)."
        )
    return float(shrinkage)


def class_means_factor(centred: Features, labels: Labels) -> Tensor:
    """Return Z `[classes present, dim]`, row c = sqrt(n_c / (N - 1)) * mean of class c.

    Z'Z is the between-class covariance; classes without an image have no row.
    """
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise VPromptError("A transferability score needs images of at least two classes.")
    sums = centred.new_zeros(len(classes), centred.shape[1]).index_add_(0, index, centred)
    return sums / (counts.to(centred) * (len(centred) - 1)).sqrt()[:, None]


def ledoit_wolf_intensity(centred: Features) -> float:
    """Return the Ledoit-Wolf shrinkage of centred rows, at least `MINIMUM_SHRINKAGE`.

    Reference: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices", 2004; computed by scikit-learn.
    """
    rho = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
    return min(max(rho, MINIMUM_SHRINKAGE), 1 - MINIMUM_SHRINKAGE)


def unit_rows(matrix: Tensor) -> Tensor:
    """Return rows of unit length; a row of zeros stays zero."""
    return matrix / matrix.norm(dim=1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)


def cosine_matrix(gradients: SourceGradients) -> Tensor:
    """Return K `[sources, sources]`: cosines between the prompts' gradients, float64."""
    units = unit_rows(gradients.double().flatten(1))
    gram = units @ units.T
    return (gram + gram.T) / 2
