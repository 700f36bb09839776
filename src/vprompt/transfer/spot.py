"""SPoT: the source whose prompt is most like one learned briefly on the target itself.

Prompts are compared without regard to the order of their tokens, so sources need no common start.

Reference: Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL
2022, arXiv 2110.07904.
"""

import torch

from vprompt.errors import VPromptError
from vprompt.evidence import Evidence
from vprompt.metrics import prompt_cosine
from vprompt.mix import Mix, Plan


def plan(*, similarity: str = "tokens", top: int = 1, epochs: int = 5) -> Plan:
    """Ask for a prompt learned on the target for a few epochs."""
    if top < 1:
        raise VPromptError(f"spot keeps at least one source, but got top={top}.")
    return prompt_cosine.plan(similarity=similarity, epochs=epochs)


def weigh(evidence: Evidence, *, similarity: str = "tokens", top: int = 1, epochs: int = 5) -> Mix:
    """Return weights proportional to the similarity of the `top` nearest prompts, others 0.

    `similarity` is `tokens` (mean cosine over all pairs of tokens) or `mean` (cosine of the mean
    tokens). Similarities below 0 count as 0; if all do, the nearest source gets all the weight.
    """
    del epochs  # what the evidence was gathered with
    if evidence.prompts is None or evidence.target is None:
        raise VPromptError("spot needs a prompt learned on the target, but the evidence has none.")
    target = evidence.target
    cosines = [prompt_cosine.score(p, target, similarity=similarity) for p in evidence.prompts]
    found = torch.tensor(cosines, dtype=torch.float64)
    nearest = found.argsort(descending=True)[:top]
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[nearest] = found[nearest].clamp_min(0)
    if float(weights.sum()) <= 0:
        weights[nearest[0]] = 1.0
    return Mix(weights / weights.sum(), facts={"similarities": found.tolist()})
