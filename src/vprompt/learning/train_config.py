"""TrainConfig: every setting of the one training loop, checked when a person types it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vprompt.core import registry
from vprompt.core.errors import VPromptError

# What `combine` changes: its start is good already and its images are few, so steps are smaller and
# more, and epochs are judged by validation loss, which few images tell better than accuracy.
COMBINE = {"lr": 1e-3, "batch_size": 16, "keep": "least_loss"}


# An ensemble is as good untuned (docs/moves.md), and its tuning costs that of all its members.
FORMS = {"auto": {"epochs": 0}, "ensemble": {"epochs": 0}}


def combining_defaults(method: str, form: str = "sum") -> dict[str, Any]:
    """Return `COMBINE`, and above it the settings that a method of `transfer/` works best with.

    Some forms of the sum have settings of their own.

    Its file may hold `training(**settings) -> dict`; what a person gives goes first.
    """
    ask = registry.beside("transfer", method, "training")
    return {**COMBINE, **FORMS.get(form, {}), **({} if ask is None else ask())}


class TrainConfig(BaseModel):
    """How a head and an adapter are trained; the names are timm's where timm has one.

    The defaults are meant to work untouched. `head`, `keep` and the method's `prompt_init` switch
    back to the literature's habits one by one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(64, ge=1)
    opt: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(5e-3, gt=0, description="of the adapter's parameters")
    head_lr: float | None = Field(
        1e-3, ge=0, description="of the head, in whitened coordinates if closed_form; null: lr"
    )
    weight_decay: float = Field(1e-4, ge=0)
    decay_bias: bool = Field(False, description="decay the head's bias, too")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps")
    sched: Literal["cosine", "cosine_by_epoch", "constant"] = "cosine"
    first_epoch_lr: float | None = Field(
        None, gt=0, description="of everything, in the first epoch of cosine_by_epoch; null: lr"
    )
    min_lr: float = Field(1e-3, ge=0, le=1, description="share of lr at the end of the cosine")
    augment: Literal["none", "crop_flip"] = "none"
    clip_grad: float = Field(0.0, ge=0, description="largest norm of a step's gradient; 0: any")
    head: Literal["closed_form", "zero", "kaiming"] = "closed_form"
    keep: Literal["best", "least_loss", "last"] = "best"
    patience: int = Field(
        0, ge=0, description="end once the least validation loss is so many epochs old; 0: never"
    )
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    # Changes no result, so it is part of no record and of no checkpoint's name.
    prefix_cache: float = Field(2.0, ge=0, exclude=True, description="GiB on disk; 0: off")

    @property
    def rate_of_head(self) -> float:
        """The learning rate of the head: its own, or that of the adapter."""
        return self.lr if self.head_lr is None else self.head_lr

    @classmethod
    def checked(cls, values: Mapping[str, object]) -> "TrainConfig":
        """Return the settings, or raise VPromptError that names the flag which is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise VPromptError(
                    f"There is no training setting {name!r}. There are: {known}."
                ) from None
            flag = "--" + name.replace("_", "-")
            raise VPromptError(f"{flag}: {first['msg']}, but got {first['input']!r}.") from None
