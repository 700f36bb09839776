"""TransRate: how many nats it takes to code the features, less what the classes save.

Reference: Huang et al., "Frustratingly Easy Transferability Estimation", ICML 2022,
arXiv 2106.09362.
"""

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous

RANGE = (-float("inf"), float("inf"))


def score(
    features: Features,
    labels: Labels,
    *,
    epsilon: float = 1e-4,
    relative: bool = False,
    class_weighted: bool = False,
) -> float:
    """Return R(F) - mean_c R(F_c), R(F) = logdet(I + F'F / (n epsilon)) / 2; higher is better.

    The published `epsilon` is so small that rank outweighs geometry; `relative` measures it in
    units of the features' mean variance. `class_weighted` weighs classes by their images.
    """
    if epsilon <= 0:
        raise VPromptError(f"epsilon must be above 0, but got {epsilon}.")
    data = features.double() - features.double().mean(0)
    index, classes = contiguous(labels)
    if relative:
        epsilon *= max(float(data.square().mean()), 1e-30)
    rates = torch.stack([_rate(data[index == label], epsilon) for label in range(classes)])
    shares = torch.bincount(index).double() / len(data) if class_weighted else None
    mean = rates.mean() if shares is None else shares @ rates
    return float(_rate(data, epsilon) - mean)


def _rate(data: Tensor, epsilon: float) -> Tensor:
    """Return the rate from the smaller of the two Gram matrices; both have one determinant."""
    gram = data @ data.T if len(data) < data.shape[1] else data.T @ data
    return torch.linalg.slogdet(torch.eye(len(gram)).double() + gram / (len(data) * epsilon))[1] / 2
