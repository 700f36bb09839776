"""ETran: energy of the features, that is how familiar they are, plus a discriminant's confidence.

The energy depends on the features' scale and on no label; the discriminant is judged on the images
it was fitted to, so few images in many dimensions flatter it.

Reference: Gholami et al., "ETran: Energy-Based Transferability Estimation", ICCV 2023,
arXiv 2308.02027.
"""

import scipy.linalg
import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import ledoit_wolf_intensity
from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous

RANGE = (-float("inf"), float("inf"))
PARTS = ("both", "energy", "lda")


def score(features: Features, labels: Labels, *, part: str = "both") -> float:
    """Return the mean log-sum-exp of the features plus the mean probability of the true class.

    `part` is one of `PARTS`: the sum, the energy alone (unbounded), or the discriminant alone
    (0 to 1). The published code takes the discriminant's accuracy, which has more ties. Its
    within-class covariance is shrunk by Ledoit-Wolf, so that it can be inverted.
    """
    if part not in PARTS:
        raise VPromptError(f"part is one of {', '.join(PARTS)}, not {part!r}.")
    index, classes = contiguous(labels)
    data = features.double()
    found = 0.0
    if part != "lda":
        found += data.logsumexp(1).mean().item()
    if part != "energy":
        found += _posteriors(data, index, classes).gather(1, index[:, None]).mean().item()
    return found


def _posteriors(data: Tensor, index: Tensor, classes: int) -> Tensor:
    """Return class probabilities on the at most classes - 1 axes that separate best.

    They solve B v = lambda W v, with W the shrunk within-class covariance; scaled to v'Wv = 1,
    every class is a unit ball around its mean.
    """
    counts = torch.bincount(index).double()
    priors = (counts / len(data)).log()
    centred = data - data.mean(0)
    sums = centred.new_zeros(classes, data.shape[1]).index_add_(0, index, centred)
    means = sums / counts[:, None]
    inside = centred - means[index]
    within = inside.T @ inside / len(data)
    scale = float(within.trace()) / len(within)
    if scale <= 1e-20 * float(data.square().mean()):  # nothing varies within a class
        within, scale = centred.T @ centred / len(data), float(centred.square().mean())
        inside = centred
    if scale <= 1e-20 * float(data.square().mean()):
        return priors.softmax(0).expand(len(data), -1)  # nor between them
    rho = ledoit_wolf_intensity(inside)
    shrunk = (1 - rho) * within + rho * scale * torch.eye(len(within)).double()
    between = (means.T * counts / len(data)) @ means
    width = len(within)
    _, axes = scipy.linalg.eigh(
        between.numpy(), shrunk.numpy(), subset_by_index=[max(width - classes + 1, 0), width - 1]
    )
    turned = torch.from_numpy(axes)
    apart = torch.cdist(centred @ turned, means @ turned).square()
    return (priors - apart / 2).softmax(1)
