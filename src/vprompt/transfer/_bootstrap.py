"""Bootstrap: how far the weights would move had other images of the same classes been drawn.

Solving a hundred times in full width would take minutes, so features are first projected onto the
main axes of their plain average; the score there is another one, but its optimum moves as much.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vprompt.core.randomness import stream
from vprompt.core.types import Labels, SourceFeatures, Weights
from vprompt.pooling.simplex import Objective, maximise

WIDTH = 64


def resampled_weights(
    features: SourceFeatures,
    labels: Labels,
    objective_of: Callable[[SourceFeatures, Labels], Objective],
    weights: Weights,
    *,
    resamples: int,
) -> Tensor:
    """Return the optimum for every resample, `[resamples, sources]`.

    Images are drawn with replacement within each class, so that no class vanishes. Every climb
    starts near `weights`, so the spread is that around this optimum, not between optima.
    """
    small = project(features, min(WIDTH, features.shape[2], max(len(labels) // 4, 2)))
    generator = stream(0, "bootstrap")
    start = 0.9 * weights.clamp_min(0) / weights.clamp_min(0).sum() + 0.1 / len(weights)
    found = []
    for _ in range(resamples):
        rows = _draw(labels, generator)
        objective = objective_of(small[:, rows], labels[rows])
        found.append(maximise(objective, start, steps=100, tolerance=1e-4).weights)
    return torch.stack(found)


def intervals(samples: Tensor, level: float = 0.95) -> list[list[float]]:
    """Return the central interval of every weight, `[low, high]`."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=samples.dtype)
    return [[float(low), float(high)] for low, high in torch.quantile(samples, tails, dim=0).T]


def project(features: SourceFeatures, width: int) -> Tensor:
    """Return all sources on the main axes of their plain average, `[sources, images, width]`."""
    centred = features.double() - features.double().mean(1, keepdim=True)
    average = centred.mean(0)
    _, vectors = torch.linalg.eigh(average.T @ average)
    return centred @ vectors[:, -width:]


def _draw(labels: Labels, generator: torch.Generator) -> Tensor:
    rows = []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        rows.append(own[torch.randint(len(own), (len(own),), generator=generator)])
    return torch.cat(rows)
