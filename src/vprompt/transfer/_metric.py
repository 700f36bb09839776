"""Metric: what a method asks for, and gets, that weighs sources by one score each."""

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.settings import Settings
from vprompt.pooling import scoring
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Plan


class ByMetric(Settings):
    """The settings. `metric` is any of `vprompt list metrics`."""

    metric: str = "hscore"


def plan_of(metric: str) -> Plan:
    """Return what has to be gathered for a metric; one that cannot be had is refused.

    That is one that does not exist, or needs the sources' own images: whoever shares a prompt
    keeps those.
    """
    if scoring.SOURCE_DATA & set(scoring.needs(metric)):
        raise VPromptError(
            f"{metric} needs the sources' own images, which a pool does not hold. Choose another "
            "metric."
        )
    return scoring.plan_of([metric])


def scores_of(evidence: Evidence, metric: str) -> Tensor:
    """Return one score per source, `[sources]`, float64."""
    known = {name: scoring.inputs_of(evidence, row) for row, name in enumerate(evidence.names)}
    found = scoring.rank(metric, known)
    if found.missing:
        raise VPromptError(next(iter(found.missing.values())))
    scores = dict(found.ranked)
    return torch.tensor([scores[name] for name in evidence.names], dtype=torch.float64)
