"""LEEP: how well the source's own head, its classes translated into the target's, fits the labels.

Needs no target head and no training; `best_subsets` ranks sets of sources by two extensions.

Reference: Nguyen et al., "LEEP: A New Measure to Evaluate Transferability of Learned
Representations", ICML 2020, arXiv 2002.12462.
"""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Labels, SourceProbabilities
from vprompt.metrics._empirical import predicted

RANGE = (-float("inf"), 0.0)
RULES = ("e_leep", "ms_leep")


def score(source_probabilities: SourceProbabilities, labels: Labels) -> float:
    """Return the mean log of the empirical predictor's probability of the label, at most 0.

    `source_probabilities` `[images, source classes]` are what the source's head says of the
    target's images, rows with sum 1. As many source classes as images fit any labels.
    """
    return float(predicted(source_probabilities, labels).log().mean())


def best_subsets(
    sources: Mapping[str, SourceProbabilities],
    labels: Labels,
    *,
    rule: str = "e_leep",
    most: int = 3,
) -> list[tuple[tuple[str, ...], float]]:
    """Return every subset of up to `most` sources with its score, best first.

    `e_leep` is the LEEP of the sources' averaged predictors; `ms_leep` is the mean of their LEEPs,
    which no set can have higher than its best member. E-LEEP is never below MS-LEEP.

    Reference: Agostinelli et al., "Transferability Metrics for Selecting Source Model Ensembles",
    CVPR 2022, arXiv 2111.13011.
    """
    if rule not in RULES:
        raise VPromptError(f"No rule called {rule!r}. There are: {', '.join(RULES)}.")
    if most < 1 or not sources:
        raise VPromptError(
            f"Subsets need at least one source and most=1, but got {len(sources)} sources and "
            f"most={most}."
        )
    names = list(sources)
    each = torch.stack([predicted(sources[name], labels) for name in names])
    found = [
        (tuple(names[row] for row in rows), _together(each[list(rows)], rule))
        for size in range(1, min(most, len(names)) + 1)
        for rows in itertools.combinations(range(len(names)), size)
    ]
    return sorted(found, key=lambda pair: -pair[1])


def _together(predictors: Tensor, rule: str) -> float:
    """Return the score of a set from its members' predictors `[members, images]`."""
    logs = predictors.log().mean() if rule == "ms_leep" else predictors.mean(0).log().mean()
    return float(logs)
