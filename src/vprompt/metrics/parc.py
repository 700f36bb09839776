"""PARC: how far images that are alike in their features have the same label.

Reference: Bolya et al., "Scalable Diverse Model Selection for Accessible Transfer Learning",
NeurIPS 2021, arXiv 2111.06977.
"""

import torch
from scipy.stats import spearmanr

from vprompt.core.randomness import stream
from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous, principal

RANGE = (-100.0, 100.0)


def score(
    features: Features,
    labels: Labels,
    *,
    dimensions: int | None = None,
    most: int = 5000,
    seed: int = 0,
) -> float:
    """Return 100 times Spearman's correlation between distances, -100 to 100, higher is better.

    Distances are 1 - correlation of standardised features, and whether labels differ. `most` images
    are drawn where there are more: memory grows with their square.
    """
    index, _ = contiguous(labels)
    data = features.double()
    if len(data) > most:
        rows = torch.randperm(len(data), generator=stream(seed, "parc"))[:most]
        data, index = data[rows], index[rows]
    spread = data.std(0, unbiased=False)
    data = principal((data - data.mean(0))[:, spread > 0] / spread[spread > 0], dimensions)
    kept = (data - data.mean(1, keepdim=True)).norm(dim=1) > 0
    data, index = data[kept], index[kept]
    first, second = torch.triu_indices(len(data), len(data), offset=1)
    # One-hot rows have two correlations only. Computed, rounding would break their ties by chance.
    different = (index[first] != index[second]).double()
    if len(different.unique()) < 2:
        return 0.0  # constant features, or one image of a class: every pair is of one kind
    apart = 1 - torch.corrcoef(data)[first, second]
    if len(apart.unique()) < 2:
        return 0.0
    found = float(spearmanr(apart.numpy(), different.numpy()).statistic)
    return 100 * found if found == found else 0.0
