"""Prompt cosine: how like the source's prompt is to one learned briefly on the target itself.

Prompts are compared without regard to the order and number of their tokens.

Reference: Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL
2022, arXiv 2110.07904; over all pairs of tokens as in Su et al., "On Transferability of Prompt
Tuning for Natural Language Processing", NAACL 2022, arXiv 2111.06719.
"""

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import unit_rows
from vprompt.core.registry import suggest
from vprompt.core.types import PromptTokens, TargetTokens
from vprompt.pooling.mix import Plan

RANGE = (-1.0, 1.0)
SIMILARITIES = ("tokens", "mean")


def plan(*, similarity: str = "tokens", epochs: int = 5) -> Plan:
    """Ask for a prompt learned on the target for a few epochs."""
    if similarity not in SIMILARITIES:
        raise VPromptError(
            f"There is no similarity {similarity!r}.{suggest(similarity, SIMILARITIES)}"
        )
    if epochs < 1:
        raise VPromptError(f"A prompt is learned for at least one epoch, but got epochs={epochs}.")
    return Plan(target_epochs=epochs)


def score(
    tokens: PromptTokens,
    target_tokens: TargetTokens,
    *,
    similarity: str = "tokens",
    epochs: int = 5,
) -> float:
    """Return a cosine, -1 to 1; higher is more alike.

    `similarity` is `tokens` (E_token, the mean cosine over all pairs of tokens) or `mean` (E_avg,
    the cosine of the mean tokens). `tokens` `[count, dim]` and `target_tokens` `[tokens, dim]` may
    differ in length.
    """
    plan(similarity=similarity, epochs=epochs)  # refuses what does not exist
    theirs, own = tokens.double(), target_tokens.double()
    if similarity == "mean":
        means = (unit_rows(each.mean(0, keepdim=True))[0] for each in (theirs, own))
    else:  # the mean over all pairs is the inner product of the mean unit tokens
        means = (unit_rows(each).mean(0) for each in (theirs, own))
    one, other = means
    return float(one @ other)
