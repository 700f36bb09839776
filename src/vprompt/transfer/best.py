"""Best: all weight on the source whose features score highest on the target."""

import torch

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
    """Return a one for the best source under `metric`."""
    scores = scores_of(evidence, settings.metric)
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[scores.argmax()] = 1.0
    return Mix(weights, facts={"scores": scores.tolist()})
