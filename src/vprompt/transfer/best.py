"""Best: all weight on the source whose features score highest on the target."""

import torch

from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan
from vprompt.transfer._metric import plan_of, scores_of


def plan(*, metric: str = "hscore") -> Plan:
    """Ask for what the metric needs; one that cannot be had is refused here."""
    return plan_of(metric)


def weigh(evidence: Evidence, *, metric: str = "hscore") -> Mix:
    """Return a one for the best source under `metric`, any of `vprompt list metrics`."""
    scores = scores_of(evidence, metric)
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[scores.argmax()] = 1.0
    return Mix(weights, facts={"scores": scores.tolist()})
