"""Trace ratio: the share of the features' variance that lies between classes; no inverse.

Cheap and defined for any number of images, but blind to correlations between feature axes. The
group behind HGPrompt released it under the name H-score.

Reference: Wu et al., "H-ensemble: An Information Theoretic Approach to Reliable Few-Shot
Multi-Source-Free Transfer", AAAI 2024, arXiv 2312.12489.
"""

from vprompt.core.linalg import class_means_factor
from vprompt.core.types import Features, Labels

RANGE = (0.0, 1.0)


def score(features: Features, labels: Labels) -> float:
    """Return tr(between) / tr(total), from 0 to 1."""
    centred = features.double() - features.double().mean(0)
    between = class_means_factor(centred, labels).square().sum()
    total = centred.square().sum() / (len(centred) - 1)
    return float(between / total) if float(total) else 0.0
