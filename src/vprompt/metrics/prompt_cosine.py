"""Prompt cosine: how like the source's prompt is to one learned briefly on the target itself.

Prompts are compared without regard to the order and number of their tokens.

Reference: Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL
2022, arXiv 2110.07904; over all pairs of tokens as in Su et al., "On Transferability of Prompt
Tuning for Natural Language Processing", NAACL 2022, arXiv 2111.06719.
"""

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import unit_rows
from vprompt.core.registry import suggest
from vprompt.core.settings import Settings, takes
from vprompt.core.types import PromptTokens, TargetTokens
from vprompt.pooling.mix import Plan

RANGE = (-1.0, 1.0)
SIMILARITIES = ("tokens", "mean")


class PromptCosine(Settings):
    """The settings.

    `similarity` is `tokens` (E_token, the mean cosine over all pairs of tokens) or `mean` (E_avg,
    the cosine of the mean tokens). `epochs` are those of the prompt that is learned on the target.
    """

    similarity: str = "tokens"
    epochs: int = 5


@takes(PromptCosine)
def plan(settings: PromptCosine) -> Plan:
    """Ask for a prompt learned on the target for a few epochs."""
    _check(settings)
    return Plan(target_epochs=settings.epochs)


@takes(PromptCosine)
def score(tokens: PromptTokens, target_tokens: TargetTokens, settings: PromptCosine) -> float:
    """Return a cosine, -1 to 1; higher is more alike.

    `tokens` `[count, dim]` and `target_tokens` `[tokens, dim]` may differ in length.
    """
    _check(settings)
    theirs, own = tokens.double(), target_tokens.double()
    if settings.similarity == "mean":
        means = (unit_rows(each.mean(0, keepdim=True))[0] for each in (theirs, own))
    else:  # the mean over all pairs is the inner product of the mean unit tokens
        means = (unit_rows(each).mean(0) for each in (theirs, own))
    one, other = means
    return float(one @ other)


def _check(settings: PromptCosine) -> None:
    """Refuse settings that make no sense."""
    similarity, epochs = settings.similarity, settings.epochs
    if similarity not in SIMILARITIES:
        raise VPromptError(
            f"There is no similarity {similarity!r}.{suggest(similarity, SIMILARITIES)}"
        )
    if epochs < 1:
        raise VPromptError(f"A prompt is learned for at least one epoch, but got epochs={epochs}.")
