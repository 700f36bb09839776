"""SPoT: the source whose prompt is most like one learned briefly on the target itself.

Prompts are compared without regard to the order of their tokens, so sources need no common start.

Reference: Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL
2022, arXiv 2110.07904.
"""

import torch
from torch import Tensor

from vprompt.errors import VPromptError
from vprompt.evidence import Evidence
from vprompt.linalg import unit_rows
from vprompt.mix import Mix, Plan
from vprompt.registry import suggest
from vprompt.types import PromptTokens

SIMILARITIES = ("tokens", "mean")


def plan(*, similarity: str = "tokens", top: int = 1, epochs: int = 5) -> Plan:
    """Ask for a prompt learned on the target for a few epochs."""
    if similarity not in SIMILARITIES:
        raise VPromptError(
            f"spot has no similarity {similarity!r}.{suggest(similarity, SIMILARITIES)}"
        )
    if top < 1:
        raise VPromptError(f"spot keeps at least one source, but got top={top}.")
    if epochs < 1:
        raise VPromptError(f"spot learns for at least one epoch, but got epochs={epochs}.")
    return Plan(target_epochs=epochs)


def weigh(evidence: Evidence, *, similarity: str = "tokens", top: int = 1, epochs: int = 5) -> Mix:
    """Return weights proportional to the similarity of the `top` nearest prompts, others 0.

    `similarity` is `tokens` (mean cosine over all pairs of tokens) or `mean` (cosine of the mean
    tokens). Similarities below 0 count as 0; if all do, the nearest source gets all the weight.
    """
    del epochs  # what the evidence was gathered with
    if evidence.prompts is None or evidence.target is None:
        raise VPromptError("spot needs a prompt learned on the target, but the evidence has none.")
    found = prompt_similarities(evidence.prompts, evidence.target, similarity)
    nearest = found.argsort(descending=True)[:top]
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[nearest] = found[nearest].clamp_min(0)
    if float(weights.sum()) <= 0:
        weights[nearest[0]] = 1.0
    return Mix(weights / weights.sum(), facts={"similarities": found.tolist()})


def prompt_similarities(prompts: Tensor, target: PromptTokens, similarity: str) -> Tensor:
    """Return how like the target's tokens `[count, dim]` each prompt's are, `[sources]`."""
    own, theirs = target.double(), prompts.double()
    if similarity == "mean":
        return unit_rows(theirs.mean(1)) @ unit_rows(own.mean(0, keepdim=True))[0]
    # The mean over all pairs is the inner product of the mean unit tokens.
    units = torch.stack([unit_rows(each).mean(0) for each in theirs])
    return units @ unit_rows(own).mean(0)
