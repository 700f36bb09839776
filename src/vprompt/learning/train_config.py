"""TrainConfig: every setting of the one training loop, checked when a person types it."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, Field, model_serializer

from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.settings import TRAINING, Flag, Settings

# What `combine` changes: its start is good already and its images are few, so steps are smaller and
# more, and epochs are judged by validation loss, which few images tell better than accuracy.
COMBINE = {"lr": 1e-3, "batch_size": 16, "keep": "least_loss"}


# An ensemble is as good untuned (docs/moves.md), and its tuning costs that of all its members.
FORMS = {"auto": {"epochs": 0}, "ensemble": {"epochs": 0}}


def combining_defaults(method: str, form: str = "sum") -> dict[str, Any]:
    """Return `COMBINE`, overridden by what the form of the sum and the method work best with.

    The method's file may hold `training(**settings) -> dict`. What a person gives goes first.
    """
    ask = registry.beside("transfer", method, "training")
    return {**COMBINE, **FORMS.get(form, {}), **({} if ask is None else ask())}


def _read_weights(given: Any) -> Any:
    """Read `{cat: 2, dog: 1}`, whose names are texts even where they look like something else."""
    found = given
    if isinstance(given, str) and given not in ("none", "balanced"):
        try:
            found = yaml.load(given, yaml.BaseLoader)
        except yaml.YAMLError:
            found = None
    if isinstance(found, Mapping):
        found = {str(name): _weight(str(name), value) for name, value in found.items()}
    elif found not in ("none", "balanced"):
        found = None
    if not found:
        raise VPromptError(
            f"--class-weights is `balanced`, `none`, or a weight for each class such as "
            f"'{{cat: 2, dog: 0.5}}', but got {given!r}."
        )
    return found


def _weight(name: str, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise VPromptError(
            f"--class-weights: the weight of {name!r} is a number above 0, but got {value!r}. To "
            "leave a class out, take its images out of the task."
        )
    return weight


class TrainConfig(Settings):
    """How a head and an adapter are trained; the names are timm's where timm has one.

    The defaults are meant to work untouched. `head`, `keep` and the method's `prompt_init` switch
    back to the literature's habits one by one. `decay_bias`, `first_epoch_lr` and `min_lr` can only
    be set in Python and in a recipe's `train`. `lr` and `head_lr` are peak rates; `weight_decay`
    leaves out the head's bias unless `decay_bias`; `warmup` and `min_lr` are shares, from 0 to 1.
    With `lr_unit="start"` the rate of a prompt is a share of the size (root mean square) that its
    tokens have in their block at the start: it differs 25-fold between backbones and blocks.
    `head` is where the head starts. `refitted` starts as `closed_form` does and is fitted anew
    after training, and the better of both heads on validation images is kept.
    """

    CALLED: ClassVar[str] = "training setting"

    epochs: Annotated[int, Field(ge=0), Flag("Passes over the training images.", TRAINING)] = 10
    batch_size: Annotated[int, Field(ge=1), Flag("Images per step.", TRAINING)] = 64
    opt: Annotated[Literal["adamw", "sgd"], Flag("Optimiser.", TRAINING)] = "adamw"
    lr: Annotated[float, Field(gt=0), Flag("Learning rate beside the head's.", TRAINING)] = 5e-3
    lr_unit: Annotated[Literal["none", "start"], Flag("Unit of lr.", TRAINING)] = "none"
    head_lr: Annotated[float | None, Field(ge=0), Flag("Learning rate of the head.", TRAINING)] = (
        1e-3
    )
    weight_decay: Annotated[float, Field(ge=0), Flag("Not of the head's bias.", TRAINING)] = 1e-4
    decay_bias: bool = False
    warmup: Annotated[
        float, Field(ge=0, le=1), Flag("Share of steps with rising rates.", TRAINING)
    ] = 0.1
    sched: Annotated[
        Literal["cosine", "cosine_by_epoch", "constant"], Flag("How the rates fall.", TRAINING)
    ] = "cosine"
    first_epoch_lr: Annotated[float | None, Field(gt=0)] = None  # of cosine_by_epoch; None: lr
    min_lr: Annotated[float, Field(ge=0, le=1)] = 1e-3  # share of lr at the end of the cosine
    augment: Annotated[
        Literal["none", "weak", "randaug", "crop_flip"], Flag("How images are varied.", TRAINING)
    ] = "none"
    class_weights: Annotated[
        str | dict[str, float],
        BeforeValidator(_read_weights),
        Flag("balanced, none or '{cat: 2}'.", TRAINING),
    ] = "none"
    clip_grad: Annotated[float, Field(ge=0), Flag("Largest gradient norm; 0: any.", TRAINING)] = 0.0
    head: Annotated[
        Literal["closed_form", "refitted", "zero", "kaiming"], Flag("Start.", TRAINING)
    ] = "closed_form"
    keep: Annotated[Literal["best", "least_loss", "last"], Flag("Epoch kept.", TRAINING)] = "best"
    patience: Annotated[
        int,
        Field(ge=0),
        Flag("Early stopping, in epochs; 0: off.", TRAINING),
    ] = 0
    precision: Annotated[Literal["auto", "bf16", "fp32"], Flag("Precision of the backbone.")] = (
        "auto"
    )
    seed: Annotated[int, Flag("Seed of order and dropout.", TRAINING)] = 0
    # Changes no result, so it is part of no record and of no checkpoint's name.
    prefix_cache: Annotated[
        float,
        Field(ge=0, exclude=True),
        Flag("GiB of disk for the blocks before the prompt; 0: off."),
    ] = 2.0

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Callable[..., Any]) -> dict[str, Any]:
        """Leave out what is not used, so that records without it stay as they were."""
        found: dict[str, Any] = handler(self)
        for name in ("class_weights", "lr_unit"):
            if found.get(name) == "none":
                del found[name]
        return found

    @property
    def rate_of_head(self) -> float:
        """The learning rate of the head: its own, or that of the adapter."""
        return self.lr if self.head_lr is None else self.head_lr

    @classmethod
    def of(
        cls, config: "TrainConfig | Mapping[str, Any] | None", usual: Mapping[str, Any]
    ) -> "TrainConfig":
        """Return a whole config as it is, or what is usual with what differs from it."""
        if isinstance(config, TrainConfig):
            return config
        return cls.checked({**usual, **(config or {})})
