"""OTCE: how well source labels tell target labels once images are matched; needs source data.

Images of source and target are matched by optimal transport between their features. Of the family,
these are the two members without coefficients that would have to be fitted on other tasks.

Reference: Tan et al., "Transferability-Guided Cross-Domain Cross-Task Transfer Learning",
arXiv 2207.05510 (F-OTCE), and "Practical Transferability Estimation for Image Classification
Tasks", arXiv 2106.10479 (JC-NCE).
"""

import math

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Labels, OwnFeatures, OwnLabels
from vprompt.metrics._checks import contiguous
from vprompt.metrics._empirical import negative_conditional_entropy

RANGE = (-float("inf"), 0.0)
VARIANTS = ("f_otce", "jc_nce")
_STEPS, _TOLERANCE = 2000, 1e-4


def score(
    features: Features,
    labels: Labels,
    source_features: OwnFeatures,
    source_labels: OwnLabels,
    *,
    variant: str = "f_otce",
    epsilon: float = 0.1,
    balance: float = 0.5,
) -> float:
    """Return -H(target label | source label) in nats under the matching, at most 0.

    `f_otce` matches by the squared distance of features. `jc_nce` matches by `balance` times that
    and 1 - `balance` times the squared Wasserstein distance between the images' classes, taken as
    Gaussians. `epsilon` is the price of a sharp matching (Sinkhorn's entropy), in units of the
    costs' standard deviation, as costs are nearly alike in many dimensions; a smaller one is
    slower. Both sets of features come from one backbone.
    """
    if variant not in VARIANTS:
        raise VPromptError(f"variant is one of {', '.join(VARIANTS)}, not {variant!r}.")
    if epsilon <= 0 or not 0 <= balance <= 1:
        raise VPromptError(
            f"epsilon is above 0 and balance lies in [0, 1], but got {epsilon} and {balance}."
        )
    index, classes = contiguous(labels)
    own_index, own_classes = contiguous(source_labels)
    data, own = features.double(), source_features.double()
    # Through a product of matrices the distances of near images would be mere rounding.
    cost = torch.cdist(data, own, compute_mode="donot_use_mm_for_euclid_dist").square()
    if variant == "jc_nce":
        apart = class_distances(data, index, own, own_index)
        cost = balance * cost + (1 - balance) * apart[index][:, own_index]
    coupling = sinkhorn(cost, epsilon * max(float(cost.std()), 1e-30))
    table = data.new_zeros(classes, len(own)).index_add_(0, index, coupling)
    table = data.new_zeros(classes, own_classes).index_add_(1, own_index, table)
    return negative_conditional_entropy(table / table.sum())


def sinkhorn(cost: Tensor, epsilon: float) -> Tensor:
    """Return the coupling of two uniform distributions that minimises cost - epsilon entropy.

    Works with logarithms, so that no small epsilon underflows. Raises VPromptError where it has not
    converged after many steps.

    Reference: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS
    2013, arXiv 1306.0895.
    """
    rows, columns = cost.shape
    one, other = cost.new_zeros(rows, 1), cost.new_zeros(1, columns)
    price = max(float(cost.max()), epsilon)
    for step in range(1, _STEPS + 1):
        one = -price * (math.log(rows) + ((other - cost) / price).logsumexp(1, keepdim=True))
        other = -price * (math.log(columns) + ((one - cost) / price).logsumexp(0, keepdim=True))
        if step % 10:
            continue
        if price > epsilon:  # from a blunt matching to a sharp one takes far fewer steps
            price = max(price / 2, epsilon)
            continue
        coupling = ((one + other - cost) / epsilon).exp()
        if float((coupling.sum(1) - 1 / rows).abs().sum()) < _TOLERANCE:
            return coupling
    raise VPromptError(
        f"Sinkhorn's matching has not converged after {_STEPS} steps. Use a larger epsilon."
    )


def class_distances(one: Tensor, index: Tensor, other: Tensor, other_index: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distance of every pair of classes, as Gaussians.

    tr((A^1/2 B A^1/2)^1/2) of two covariances is the sum of the singular values of X_a X_b', X the
    centred images over the root of their number: no root of a wide matrix is taken.

    Reference: Alvarez-Melis and Fusi, "Geometric Dataset Distances via Optimal Transport", NeurIPS
    2020, arXiv 2002.02923.
    """
    here, there = _gaussians(one, index), _gaussians(other, other_index)
    rows = []
    for mean, spread in here:
        gaps = [
            (mean - m).square().sum()
            + spread.square().sum()
            + s.square().sum()
            - 2 * torch.linalg.svdvals(spread @ s.T).sum()
            for m, s in there
        ]
        rows.append(torch.stack(gaps))
    return torch.stack(rows).clamp_min(0)


def _gaussians(data: Tensor, index: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return mean and centred rows over the root of their number, of every class."""
    groups = [data[index == label] for label in range(int(index.max()) + 1)]
    return [(g.mean(0), (g - g.mean(0)) / math.sqrt(len(g))) for g in groups]
