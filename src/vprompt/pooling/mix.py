"""Mix: what a transfer method asks of the main line, and what it answers.

A file in `transfer/` holds `weigh(evidence, *, settings) -> Mix`. Where it needs more than the
sources' features, it also holds `plan(*, the same settings) -> Plan`; where it trains something
else than the summed prompt, `adapter(start, mix, *, the same settings) -> (Adapter, Mix) | None`;
and where it wants other rates, `training(*, the same settings) -> dict`.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.types import LayerWeights, Weights
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter
from vprompt.learning.tune import Tuned
from vprompt.models.backbone import Backbone
from vprompt.prompts.compose import ALIGNS, SCALES
from vprompt.prompts.prompt import Prompt

EVERY_SOURCE = sys.maxsize  # more trainings than any pool has sources
PUBLISHED = "published"
FORMS = ("auto", "sum", "side_by_side", "ensemble", "distil")
GRADIENT_HEADS = ("base", "own", "hscore", "ncm", "random", "source")


@dataclass(frozen=True)
class Plan:
    """What a method needs gathered, and how it wants its prompts added up.

    `look` says that the method needs the features of the images under every source; without, only
    a sum of moves can be made, since a convex sum is compared with single sources.

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

    `move_scale` says how the sum is made: `published` is a convex sum of prompts, whatever the
    method's weights; `auto` adds up moves in the direction of the weights at a scale that the
    training images choose, `sources` at their number, so that every move counts in full, a number
    at that scale (docs/moves.md). `form` is what the sum becomes, one of `FORMS`; `auto` is an
    ensemble, unless one sum is clearly better on held-out images. `members` is how
    many parts of the pool an ensemble has at most, `climb` for how many steps the coefficients
    climb the true loss, `distillation` how much a distilled prompt is drawn towards its teacher.
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
    move_scale: str | float = PUBLISHED
    form: str = "sum"
    members: int = 4
    climb: int = 0
    distillation: float = 1.0
    look: bool = True

    @property
    def looks(self) -> bool:
        """Whether the sources have to be looked at."""
        return self.look or self.move_scale == PUBLISHED

    def epochs(self, budget: int, sources: int) -> int:
        """Return how many epochs of training it takes in all, where one training takes `budget`."""
        trainings = 1 + min(self.trainings, sources)
        return trainings * budget + self.target_epochs + self.refine

    def __post_init__(self) -> None:
        """Refuse what does not exist, before anything is gathered."""
        for name, value, known in (("align", self.align, ALIGNS), ("scale", self.scale, SCALES)):
            if value not in known:
                raise VPromptError(f"No {name} called {value!r}. There are: {', '.join(known)}.")
        if self.form not in FORMS:
            raise VPromptError(f"No form called {self.form!r}. There are: {', '.join(FORMS)}.")
        named = (PUBLISHED, "auto", "sources")
        if self.move_scale not in named and not _positive(self.move_scale):
            raise VPromptError(
                "move_scale is `published`, `auto`, `sources` or a number above 0, but got "
                f"{self.move_scale!r}."
            )
        if self.form != "sum" and self.move_scale == PUBLISHED:
            raise VPromptError(
                f"form={self.form} is made of moves. Add --move-scale auto, or leave the form out."
            )
        if self.members < 1:
            raise VPromptError(f"An ensemble has at least 1 member, but got {self.members}.")
        if self.climb < 0:
            raise VPromptError(f"climb is a number of steps from 0, but got {self.climb}.")
        if not isinstance(self.safeguard, bool):
            raise VPromptError(f"safeguard is true or false, but got {self.safeguard!r}.")
        if self.gradient_head is not None and self.gradient_head not in GRADIENT_HEADS:
            raise VPromptError(
                f"No gradient head called {self.gradient_head!r}. There are: "
                f"{', '.join(GRADIENT_HEADS)}."
            )


def plan_of(method: str, **given: Any) -> Plan:
    """Return what a transfer method asks for, with what was given in its place: `Plan`'s fields.

    A form that is made of moves asks for a free scale; a `scale` of tokens is that of a published
    sum, which has no other form.
    """
    ask = registry.beside("transfer", method, "plan")
    if given.get("form") not in (None, "sum") and given.get("move_scale") is None:
        given["move_scale"] = "auto"
    if given.get("scale") not in (None, "none") and given.get("move_scale") is None:
        given["move_scale"] = PUBLISHED  # it says how a convex sum is scaled, token by token
    if given.get("move_scale") == PUBLISHED and given.get("form") is None:
        given["form"] = "sum"
    plan = Plan() if ask is None else ask()
    return replace(plan, **{key: value for key, value in given.items() if value is not None})


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


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
