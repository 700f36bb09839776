"""ATTEMPT: an attention mixes the sources' prompts anew for every image, and is trained with them.

Reference: Asai et al., "ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of
Soft Prompts", EMNLP 2022, arXiv 2205.11961.
"""

from typing import Any

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest
from vprompt.core.settings import Settings, takes
from vprompt.learning.adapter import Adapter
from vprompt.learning.mixture import InstanceMixture
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan, TuningStart
from vprompt.prompts.compose import check_same_place, combine

TARGETS = ("first", "mean", "zeros")


class Attempt(Settings):
    """The settings.

    Without a `temperature` it is chosen so that the logits of the attention vary by about 1. The
    published 2087 was made for word embeddings: on prompts of the size of image patches all weights
    come out equal, and the method is plain averaging. `target` is where the target's own prompt
    starts: `first`, the first source as published, `mean` or `zeros`. `attention_rate` is the rate
    of the attention by that of the prompt; the public code meant a third, and a wrong name kept it
    from being used.
    """

    temperature: float | None = None
    target: str = "first"
    bottleneck: int = 100
    attention_rate: float = 1.0
    init_seed: int = 0


@takes(Attempt)
def plan(settings: Attempt) -> Plan:
    """Ask for features alone; settings that make no sense are refused here."""
    target, temperature = settings.target, settings.temperature
    if target not in TARGETS:
        raise VPromptError(f"attempt has no target {target!r}.{suggest(target, TARGETS)}")
    if temperature is not None and not temperature > 0:
        raise VPromptError(f"attempt needs a temperature above 0, but got {temperature}.")
    if settings.bottleneck < 1 or not settings.attention_rate > 0:
        raise VPromptError(
            "attempt needs a bottleneck of at least 1 and an attention_rate above 0, but got "
            f"{settings.bottleneck} and {settings.attention_rate}."
        )
    return Plan(safeguard=False, merge_twins=False)


def training(**settings: object) -> dict[str, Any]:
    """Return the rate that prompt and attention want."""
    del settings
    return {"lr": 5e-3}


@takes(Attempt)
def weigh(evidence: Evidence, settings: Attempt) -> Mix:
    """Return equal weights: the attention finds its own, for every image, in training.

    The record then holds their mean over the training images.
    """
    del settings  # for what is trained
    return Mix(torch.full((len(evidence),), 1 / len(evidence), dtype=torch.float64))


@takes(Attempt)
def adapter(start: TuningStart, mix: Mix, settings: Attempt) -> tuple[Adapter, Mix]:
    """Return the mixture of all sources."""
    check_same_place(start.prompts, start.names)
    first = start.prompts[0]
    starts = {
        "first": first,
        "mean": combine(start.prompts, mix.weights, scale="none"),
        "zeros": first.with_tokens(torch.zeros_like(first.tokens)),
    }
    mixture = InstanceMixture(
        start.backbone,
        start.prompts,
        starts[settings.target],
        bottleneck=settings.bottleneck,
        temperature=settings.temperature,
        attention_rate=settings.attention_rate,
        seed=settings.init_seed,
    )
    return mixture, mix
