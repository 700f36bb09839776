"""HGPrompt: weights under which the fused features separate the target's classes best.

Maximises the adjusted H-score of the weighted sum of the sources' features over the simplex, minus
`lambda_` times the misalignment of their gradients.

Reference: Zhang et al., "Learning Optimal Prompt Ensemble for Multi-source Visual Prompt
Transfer", AAAI 2026, arXiv 2504.12311.
"""

import torch

from vprompt.errors import VPromptError
from vprompt.evidence import Evidence
from vprompt.registry import suggest
from vprompt.transfer import _alignment
from vprompt.transfer._scores import AdjustedHScore, HScore, TraceRatio
from vprompt.transfer._simplex import Objective, distinct, maximise, starts
from vprompt.types import Weights

SCORES = ("hscore_adjusted", "hscore_shrunk", "trace_ratio")
ALIGNMENTS = ("none", "uniform")


def weigh(
    evidence: Evidence,
    *,
    score: str = "hscore_adjusted",
    alignment: str = "none",
    lambda_: float = 1.0,
    shrinkage: float | None = None,
) -> Weights:
    """Return the best of all optima found from several starts.

    `score` is `hscore_adjusted` (the shrunk H-score above what shuffled labels reach; with few
    images the plain one mostly measures that), `hscore_shrunk` or `trace_ratio`. The first two
    take `shrinkage`, by default Ledoit-Wolf's; all have 1 as their maximum. `alignment=uniform`
    subtracts `lambda_` times the paper's Eq. 10, which pulls towards uniform weights; it is off by
    default.
    """
    if len(evidence) == 1:
        return torch.ones(1, dtype=torch.float64)
    objective = build_objective(
        evidence, score=score, alignment=alignment, lambda_=lambda_, shrinkage=shrinkage
    )
    singles = [objective(row)[0] for row in torch.eye(len(evidence), dtype=torch.float64)]
    best_single = max(range(len(singles)), key=singles.__getitem__)
    found = [maximise(objective, start) for start in starts(len(evidence), best_single)]
    weights = distinct(found)[0].weights
    return weights / weights.sum()


def build_objective(
    evidence: Evidence,
    *,
    score: str = "hscore_adjusted",
    alignment: str = "none",
    lambda_: float = 1.0,
    shrinkage: float | None = None,
) -> Objective:
    """Return `alpha -> (score - lambda_ * misalignment, gradient)`."""
    if score not in SCORES:
        raise VPromptError(f"hgprompt has no score {score!r}.{suggest(score, SCORES)}")
    if alignment not in ALIGNMENTS:
        raise VPromptError(
            f"hgprompt has no alignment {alignment!r}.{suggest(alignment, ALIGNMENTS)}"
        )
    if score == "trace_ratio":
        gain: Objective = TraceRatio.of(evidence.features, evidence.labels)
    else:
        plain = HScore.of(evidence.features, evidence.labels, shrinkage)
        gain = plain if score == "hscore_shrunk" else AdjustedHScore(plain)
    if alignment == "none" or lambda_ == 0:
        return gain
    loss = _alignment.UniformAlignment.of(evidence.gradients)

    def objective(alpha: torch.Tensor) -> tuple[float, torch.Tensor]:
        value, gradient = gain(alpha)
        cost, slope = loss(alpha)
        return value - lambda_ * cost, gradient - lambda_ * slope

    return objective
