"""H-score: how well features separate the classes, as tr(covariance^-1 between-class covariance).

Shrunk by default: with few images in many dimensions the raw inverse lets any labels look
perfectly separated.

Reference: Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer
Learning", ICIP 2019; shrinkage after Ibrahim et al., arXiv 2110.06893.
"""

import torch

from vprompt.errors import VPromptError
from vprompt.linalg import class_means_factor, shrinkage_intensity
from vprompt.types import Features, Labels


def score(features: Features, labels: Labels, *, shrinkage: float | str = "ledoit_wolf") -> float:
    """Return H divided by its maximum, classes - 1: from 0 to 1, higher means better separated.

    `shrinkage` is `ledoit_wolf` or a number in [0, 1). At 0 the raw H-score is refused where it is
    constant, that is with no more images than dimensions + 1.
    """
    centred = features.double() - features.double().mean(0)
    count, width = centred.shape
    between = class_means_factor(centred, labels)
    rho = shrinkage_intensity(centred, shrinkage)
    if rho == 0 and count - 1 <= width:
        raise VPromptError(
            f"With {count} images in {width} dimensions the raw H-score is the same for any "
            "features. Use shrinkage=ledoit_wolf."
        )
    total = centred.T @ centred / (count - 1)
    if float(total.trace()) == 0:
        return 0.0  # constant features tell no class from another
    shrunk = (1 - rho) * total + rho * total.trace() / width * torch.eye(width).double()
    solved = torch.cholesky_solve(between.T, torch.linalg.cholesky(shrunk))
    return float((1 - rho) * (between.T * solved).sum() / (len(between) - 1))
