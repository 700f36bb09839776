"""The shrunk H-score and what chance reaches of it, for the members of the family."""

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import cholesky, class_means_factor, shrinkage_intensity
from vprompt.core.types import Features, Labels


def shrunk_hscore(
    features: Features, labels: Labels, shrinkage: float | str
) -> tuple[float, float, int]:
    """Return H divided by classes - 1, the share of it that is chance, and how many classes.

    H = (1 - rho) tr(S^-1 Z'Z) with S = (1 - rho) Sigma + rho tr(Sigma)/dim I. Labels shuffled over
    the images reach df / (N - 1) of the maximum on average, exactly, with
    df = tr(Sigma (Sigma + gamma I)^-1) and gamma = rho/(1 - rho) tr(Sigma)/dim.

    Raises VPromptError where H is the same for any features, or cannot be computed.
    """
    centred = features.double() - features.double().mean(0)
    count, width = centred.shape
    between = class_means_factor(centred, labels)
    classes = len(between)
    rho = shrinkage_intensity(centred, shrinkage)
    if rho == 0 and count - 1 <= width:
        raise VPromptError(
            f"With {count} images in {width} dimensions the raw H-score is the same for any "
            "features. Use shrinkage=ledoit_wolf."
        )
    total = centred.T @ centred / (count - 1)
    trace = float(total.trace())
    if trace <= 1e-20 * float(features.double().square().sum()):
        return 0.0, 0.0, classes  # constant features tell no class from another
    shrunk = (1 - rho) * total
    shrunk.diagonal().add_(rho * trace / width)
    factor = cholesky(shrunk)
    solved = torch.cholesky_solve(between.T, factor)
    value = (1 - rho) * float((between.T * solved).sum()) / (classes - 1)
    freedom = (1 - rho) * float((torch.cholesky_inverse(factor) * total).sum())
    if not -1e-9 <= value <= 1 + 1e-9:
        raise VPromptError(
            f"The H-score came out as {value:.4g} of its maximum, outside [0, 1]: the features are "
            "too badly conditioned. Use shrinkage=ledoit_wolf or trace_ratio."
        )
    return min(max(value, 0.0), 1.0), freedom / (count - 1), classes
