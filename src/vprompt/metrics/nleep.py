"""NLEEP: LEEP with the clusters of a Gaussian mixture in place of source classes; needs no head.

Reference: Li et al., "Ranking Neural Checkpoints", CVPR 2021, arXiv 2011.11200.
"""

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous
from vprompt.metrics._empirical import predicted

RANGE = (-float("inf"), 0.0)
COVARIANCES = ("diag", "full")
_RIDGE = 1e-3  # of the mean variance: a cluster of one image is otherwise a spike


def score(
    features: Features,
    labels: Labels,
    *,
    variance: float = 0.8,
    clusters_per_class: int = 5,
    images_per_cluster: int = 5,
    covariance: str = "diag",
    starts: int = 3,
    seed: int = 0,
) -> float:
    """Return the LEEP of cluster probabilities, at most 0; higher is better.

    Features are reduced to the principal axes that hold `variance` of theirs. There are
    `clusters_per_class` times as many clusters as classes, but no more than leave
    `images_per_cluster` for each: with more, any labels look predictable. `covariance="full"` is
    as published, for many images. The best of `starts` fits is taken.
    """
    if covariance not in COVARIANCES:
        raise VPromptError(f"covariance is one of {', '.join(COVARIANCES)}, not {covariance!r}.")
    if not 0 < variance <= 1:
        raise VPromptError(f"variance lies above 0 and up to 1, but got {variance}.")
    if min(clusters_per_class, images_per_cluster, starts) < 1:
        raise VPromptError("clusters_per_class, images_per_cluster and starts are at least 1.")
    _, classes = contiguous(labels)
    data, order = _reduced(features.double(), variance)
    clusters = min(clusters_per_class * classes, len(data) // images_per_cluster)
    if data.shape[1] == 0 or clusters < 2:
        return float(predicted(torch.ones(len(data), 1).double(), labels).log().mean())
    mixture = GaussianMixture(
        clusters,
        covariance_type=covariance,
        reg_covar=_RIDGE * float(data.var(0, unbiased=False).mean()),
        n_init=starts,
        max_iter=200,
        random_state=seed,
    )
    rows = data.numpy()
    with warnings.catch_warnings():  # a fit that could still improve is a fit
        warnings.simplefilter("ignore", ConvergenceWarning)
        theta = torch.from_numpy(mixture.fit(rows).predict_proba(rows))
    return float(predicted(theta, labels[order]).log().mean())


def _reduced(data: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Return the images on the principal axes, sorted along the first, and their order.

    Sorted, with every axis turned to its longer tail, the mixture's random start meets the same
    rows whatever the order in which the images came.
    """
    centred = data - data.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    squares = values.square()
    if float(squares.sum()) <= 1e-20 * float(data.square().sum()):
        return data[:, :0], torch.arange(len(data))  # constant features
    shares = squares.cumsum(0) / squares.sum()
    kept = int((shares < variance - 1e-12).sum()) + 1
    reduced = left[:, :kept] * values[:kept]
    turned = reduced * torch.where(reduced.pow(3).sum(0) < 0, -1.0, 1.0)
    order = turned[:, 0].argsort()
    return turned[order].contiguous(), order
