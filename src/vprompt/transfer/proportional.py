"""Proportional: weights in proportion to a score of each source alone.

Reference: the weights `hscore` of Wu et al., "H-ensemble: An Information Theoretic Approach to
Reliable Few-Shot Multi-Source-Free Transfer", AAAI 2024, arXiv 2312.12489.
"""

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.settings import takes
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan
from vprompt.transfer._metric import ByMetric, plan_of, scores_of


@takes(ByMetric)
def plan(settings: ByMetric) -> Plan:
    """Ask for what the metric needs; one that cannot be had is refused here."""
    return plan_of(settings.metric)


@takes(ByMetric)
def weigh(evidence: Evidence, settings: ByMetric) -> Mix:
    """Return scores by their sum; equal weights where all scores are 0.

    A metric that can be negative is refused: the worst source would get the largest share.
    """
    scores = scores_of(evidence, settings.metric)
    if not bool((scores >= 0).all()):
        raise VPromptError(
            f"proportional needs scores of at least 0, but {settings.metric} gave "
            f"{float(scores.min()):.3g}. Use another metric, such as hscore, or the method `best`."
        )
    shares = scores if float(scores.sum()) > 0 else torch.ones_like(scores)
    return Mix(shares / shares.sum(), facts={"scores": scores.tolist()})
