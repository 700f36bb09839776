"""Adjusted H-score: the H-score less what meaningless labels would reach; 0 is chance, 1 perfect.

Comparable between targets with other numbers of images, classes and dimensions, as the adjusted R^2
of a regression is.

Reference: shrinkage after Ibrahim et al., arXiv 2110.06893; the floor is the exact mean over
permutations of the labels, derived for this library.
"""

from vprompt.core.types import Features, Labels
from vprompt.metrics._hscore import shrunk_hscore

RANGE = (-float("inf"), 1.0)


def score(features: Features, labels: Labels, *, shrinkage: float | str = "ledoit_wolf") -> float:
    """Return (H - floor) / (1 - floor), H and floor as shares of the maximum; at most 1.

    `shrinkage` is as for `hscore`. Below 0 the labels are separated worse than shuffled ones.
    """
    share, floor, _ = shrunk_hscore(features, labels, shrinkage)
    return (share - floor) / (1 - floor) if floor < 1 - 1e-9 else 0.0
