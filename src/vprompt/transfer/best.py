"""Best: all weight on the source whose features score highest on the target."""

import torch

from vprompt import registry
from vprompt.evidence import Evidence
from vprompt.mix import Mix, Plan


def plan(*, metric: str = "hscore") -> Plan:
    """Ask for nothing but features; a metric that does not exist is refused here."""
    registry.build("metrics", metric)
    return Plan()


def weigh(evidence: Evidence, *, metric: str = "hscore") -> Mix:
    """Return a one for the best source under `metric`, any of `vprompt list metrics`."""
    score = registry.build("metrics", metric)
    scores = torch.tensor([score(features, evidence.labels) for features in evidence.features])
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[scores.argmax()] = 1.0
    return Mix(weights, facts={"scores": scores.tolist()})
