"""Mix: what a transfer method asks of the main line, and what it answers.

A file in `transfer/` holds `weigh(evidence, *, settings) -> Mix`. Where it needs more than the
sources' features, it also holds `plan(*, the same settings) -> Plan`; where it trains something
else than the summed prompt, `adapter(start, mix, *, the same settings) -> (Adapter, Mix) | None`;
and where it wants other rates, `training(*, the same settings) -> dict`.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vprompt.adapter import Adapter
from vprompt.backbone import Backbone
from vprompt.compose import ALIGNS, SCALES
from vprompt.errors import VPromptError
from vprompt.prompt import Prompt
from vprompt.task import Examples
from vprompt.tune import Tuned
from vprompt.types import LayerWeights, Weights

EVERY_SOURCE = sys.maxsize  # more trainings than any pool has sources
GRADIENT_HEADS = ("base", "own", "hscore", "ncm", "random", "source")


@dataclass(frozen=True)
class Plan:
    """What a method needs gathered, and how it wants its prompts added up.

    `gradient_head` is the head under which prompt gradients are taken, one of `GRADIENT_HEADS`, or
    None where the method uses no gradients. `reference` adds the gradient at the plain average of
    the sources on a held-out half of the images, `variances` the variance of the gradients over
    images. `target_epochs` above 0 adds a prompt learned briefly on the target itself, `validation`
    the features of the validation images. `trainings` is how many sources are tuned on the target
    before the training that counts, at most each of them once: it costs nothing to say, and the
    estimates need it. `refine` is for how many epochs the weights climb the
    true objective through the summed prompt before its tokens are tuned. `align`, `scale` and
    `safeguard` are the defaults of the method's sum. `merge_twins` weighs sources with the same
    features once.
    """

    gradient_head: str | None = None
    reference: bool = False
    variances: bool = False
    target_epochs: int = 0
    validation: bool = False
    trainings: int = 0
    refine: int = 0
    align: str = "auto"
    scale: str = "auto"
    safeguard: bool = True
    merge_twins: bool = True

    def epochs(self, budget: int, sources: int) -> int:
        """Return how many epochs of training it takes in all, where one training takes `budget`."""
        trainings = 1 + min(self.trainings, sources)
        return trainings * budget + self.target_epochs + self.refine

    def __post_init__(self) -> None:
        """Refuse what does not exist, before anything is gathered."""
        for name, value, known in (("align", self.align, ALIGNS), ("scale", self.scale, SCALES)):
            if value not in known:
                raise VPromptError(f"No {name} called {value!r}. There are: {', '.join(known)}.")
        if not isinstance(self.safeguard, bool):
            raise VPromptError(f"safeguard is true or false, but got {self.safeguard!r}.")
        if self.gradient_head is not None and self.gradient_head not in GRADIENT_HEADS:
            raise VPromptError(
                f"No gradient head called {self.gradient_head!r}. There are: "
                f"{', '.join(GRADIENT_HEADS)}."
            )


@dataclass(frozen=True, eq=False)
class Mix:
    """One weight per source, with sum 1, and what the method has to say about them.

    Weights are not negative, unless `simplex` is False: the paper's own solver does not prevent
    it. `facts` are plain values for the record and the report. Where sources weigh differently
    from block to block, `layers` has a row of weights for every block, and `weights` is their mean.
    """

    weights: Weights
    simplex: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    layers: LayerWeights | None = None

    def check(self, method: str, sources: int) -> None:
        """Raise VPromptError unless there is one finite share per source."""
        rows = [self.weights, *(() if self.layers is None else self.layers)]
        for weights in rows:
            sound = weights.shape == (sources,) and bool(torch.isfinite(weights).all())
            negative = self.simplex and bool((weights < 0).any())
            if sound and not negative and abs(float(weights.sum()) - 1) <= 1e-6:
                continue
            raise VPromptError(
                f"{method} returned the weights {weights.tolist()}, but there must be one for "
                f"each of {sources} sources, none negative, with sum 1."
            )


@dataclass(frozen=True, eq=False)
class TuningStart:
    """What a transfer method may build upon that trains something else than the summed prompt.

    `prompts` are the sources' own, their tokens in correspondence, by `names`; `prompt` is what
    would be tuned otherwise. `fresh()` is an untrained prompt of the sources' placement and start,
    and `tune` trains an adapter on the target exactly as the final training will.
    """

    backbone: Backbone
    names: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    prompt: Prompt
    train: Examples
    val: Examples | None
    precision: str
    fresh: Callable[[], Adapter]
    tune: Callable[[Adapter], Tuned]
