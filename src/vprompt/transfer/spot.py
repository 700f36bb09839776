"""SPoT: the source whose prompt is most like one learned briefly on the target itself.

Prompts are compared without regard to the order of their tokens, so sources need no common start.
Where they have one, the published similarity is highest for whatever left it least, because a
prompt learned briefly is still near it; `similarity=moved` compares what was learned since, token
by token.

Reference: Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL
2022, arXiv 2110.07904.
"""

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import unit_rows
from vprompt.core.registry import suggest
from vprompt.core.settings import Settings, takes
from vprompt.core.types import SourceTokens, TargetTokens
from vprompt.learning.adapter import Adapter
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan, TuningStart
from vprompt.transfer._trial import best_once_tuned

SIMILARITIES = ("tokens", "mean", "moved")
USES = ("average", "best")


class Spot(Settings):
    """The settings.

    `similarity` is `tokens` (mean cosine over all pairs of tokens), `mean` (cosine of the mean
    tokens) or `moved` (cosine of the differences to the start, for a pool of one start). With
    `use=best` the `top` count alike until each has been tuned and the best on validation is kept:
    it costs as many trainings. `epochs` are those of the prompt that is learned on the target.
    """

    similarity: str = "tokens"
    top: int = 1
    use: str = "average"
    epochs: int = 5


@takes(Spot)
def plan(settings: Spot) -> Plan:
    """Ask for a prompt learned on the target for a few epochs."""
    similarity, use, top, epochs = (
        settings.similarity,
        settings.use,
        settings.top,
        settings.epochs,
    )
    if similarity not in SIMILARITIES:
        raise VPromptError(
            f"spot has no similarity {similarity!r}.{suggest(similarity, SIMILARITIES)}"
        )
    if use not in USES:
        raise VPromptError(f"spot has no use {use!r}.{suggest(use, USES)}")
    if top < 1:
        raise VPromptError(f"spot keeps at least one source, but got top={top}.")
    if epochs < 1:
        raise VPromptError(f"spot learns for at least one epoch, but got epochs={epochs}.")
    # The last of the trainings of `use=best` is one of those before it, and not done again.
    return Plan(target_epochs=epochs, trainings=top - 1 if use == "best" else 0)


@takes(Spot)
def weigh(evidence: Evidence, settings: Spot) -> Mix:
    """Return weights proportional to the similarity of the `top` nearest prompts, others 0.

    Similarities below 0 count as 0; if all do, the nearest source gets all the weight.
    """
    if evidence.prompts is None or evidence.target is None:
        raise VPromptError("spot needs a prompt learned on the target, but the evidence has none.")
    found = prompt_similarities(
        evidence.prompts, evidence.target, settings.similarity, evidence.target_start
    )
    nearest = found.argsort(descending=True)[: settings.top]
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[nearest] = 1.0 if settings.use == "best" else found[nearest].clamp_min(0)
    if float(weights.sum()) <= 0:
        weights[nearest[0]] = 1.0
    return Mix(weights / weights.sum(), facts={"similarities": found.tolist()})


@takes(Spot)
def adapter(start: TuningStart, mix: Mix, settings: Spot) -> tuple[Adapter, Mix] | None:
    """Return the source that is best on validation once it is tuned, of those with a weight."""
    if settings.use == "average":
        return None
    rows = mix.weights.nonzero().flatten().tolist()
    return best_once_tuned(start, mix, rows, method="spot(use=best)", instead="use=average")


def prompt_similarities(
    prompts: SourceTokens,
    target: TargetTokens,
    similarity: str,
    start: TargetTokens | None = None,
) -> Tensor:
    """Return how like the target's tokens each prompt's are, `[sources]`.

    `start` is where all of them began, for `moved`; a prompt that never moved is like none.
    """
    own, theirs = target.double(), prompts.double()
    if similarity == "moved":
        if start is None:
            raise VPromptError("similarity=moved needs the start, but the evidence has none.")
        moved = unit_rows((theirs - start.double()).flatten(1))
        return moved @ unit_rows((own - start.double()).reshape(1, -1))[0]
    if similarity == "mean":
        return unit_rows(theirs.mean(1)) @ unit_rows(own.mean(0, keepdim=True))[0]
    # The mean over all pairs is the inner product of the mean unit tokens.
    units = torch.stack([unit_rows(each).mean(0) for each in theirs])
    return units @ unit_rows(own).mean(0)
