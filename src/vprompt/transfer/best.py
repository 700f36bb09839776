"""Best: all weight on the source whose features score highest on the target."""

import torch

from vprompt import scoring
from vprompt.errors import VPromptError
from vprompt.evidence import Evidence
from vprompt.mix import Mix, Plan


def plan(*, metric: str = "hscore") -> Plan:
    """Ask for what the metric needs; one that cannot be had is refused here.

    That is one that does not exist, or needs the sources' own images: whoever shares a prompt
    keeps those.
    """
    if scoring.SOURCE_DATA & set(scoring.needs(metric)):
        raise VPromptError(
            f"{metric} needs the sources' own images, which a pool does not hold. Choose another "
            "metric."
        )
    return scoring.plan_of([metric])


def weigh(evidence: Evidence, *, metric: str = "hscore") -> Mix:
    """Return a one for the best source under `metric`, any of `vprompt list metrics`."""
    known = {name: scoring.inputs_of(evidence, row) for row, name in enumerate(evidence.names)}
    found = scoring.rank(metric, known)
    if found.missing:
        raise VPromptError(next(iter(found.missing.values())))
    scores = dict(found.ranked)
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[evidence.names.index(found.ranked[0][0])] = 1.0
    return Mix(weights, facts={"scores": [scores[name] for name in evidence.names]})
