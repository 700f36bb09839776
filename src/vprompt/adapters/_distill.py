"""Distillation from the same model without prompts, which keeps what zero-shot already knows.

Reference: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.precision import autocast
from vprompt.data.task import Examples
from vprompt.learning.adapter import Training
from vprompt.learning.classifier import FeatureExamples
from vprompt.learning.text_adapter import ReadingAdapter, TextAdapter, TowersAdapter
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import extract
from vprompt.models.features import features_of
from vprompt.models.heads import Head
from vprompt.models.two_tower import TextPrompt, TwoTower, text_head


@dataclass(frozen=True)
class Teacher:
    """How much the learned logits are held to those of the model without prompts, and how.

    The loss is `weight * temperature^2 * KL(softmax(teacher / temperature) || softmax(learned /
    temperature))`, summed over classes and averaged over images (`batchmean`), or averaged over
    both (`mean`).
    """

    weight: float = 0.0
    temperature: float = 1.0
    reduction: str = "batchmean"
    templates: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.weight < 0 or self.temperature <= 0:
            raise VPromptError(
                "Distillation needs a weight of at least 0 and a temperature above 0, but got "
                f"{self.weight} and {self.temperature}."
            )

    def loss(self, learned: Tensor, taught: Tensor) -> Tensor:
        """Return the loss of logits `[batch, classes]`."""
        summed = functional.kl_div(
            (learned / self.temperature).log_softmax(1),
            (taught / self.temperature).log_softmax(1),
            reduction="sum",
            log_target=True,
        )
        count = len(learned) if self.reduction == "batchmean" else learned.numel()
        return self.weight * self.temperature**2 * summed / count


class _Distilled(ReadingAdapter):
    """The teacher sees every training image once, at the start, unless images are augmented.

    Then it looks at every batch as it was cut for this step.
    """

    teacher: Teacher
    _head: Head | None = None
    _taught: Tensor | None = None  # logits of all training images, `[images, classes]`
    _seen: Examples | None = None  # the training images of this epoch, where they are augmented
    _config: TrainConfig

    def begin(self, train: Examples, config: TrainConfig) -> None:
        """Let the teacher see the training images; at weight 0 there is none."""
        if not self.teacher.weight:
            return
        read, self._config = TextPrompt(self.teacher.templates or self.read), config
        self._head = text_head(self.backbone, self.classes, read)
        if config.augment == "none":
            self._taught = self._head.logits(_plain(self.backbone, train, config))

    def begin_epoch(self, training: Training) -> None:
        """Note what this epoch sees of the images."""
        if self._head is not None and self._taught is None:
            self._seen = training.train

    def extra_loss(self, logits: Tensor, rows: Tensor) -> Tensor | None:
        """Return how far the logits are from the teacher's."""
        if self._head is None:
            return None
        taught = self._taught[rows] if self._taught is not None else self._looked(rows)
        return self.teacher.loss(logits, taught.to(logits))

    @torch.no_grad()
    def _looked(self, rows: Tensor) -> Tensor:
        """Return the teacher's logits of some images as they are in this epoch."""
        assert self._seen is not None and self._head is not None
        pixels, _ = next(self._seen.batches(len(rows), rows))
        with autocast(self._config.precision, self.backbone.device):
            found = extract(self.backbone, self.backbone.ready(pixels))
        return self._head.logits(found.float().cpu())

    def identity(self) -> dict[str, Any]:
        """Add the teacher."""
        return {**super().identity(), "teacher": asdict(self.teacher)}


class DistilledText(_Distilled, TextAdapter):
    """Tokens in the text tower alone, held to zero-shot."""

    def __init__(self, *given: Any, teacher: Teacher) -> None:
        super().__init__(*given)
        self.teacher = teacher


class DistilledTowers(_Distilled, TowersAdapter):
    """Tokens in the image tower, and perhaps in the text tower, held to zero-shot."""

    def __init__(self, *given: Any, teacher: Teacher) -> None:
        super().__init__(*given)
        self.teacher = teacher


@torch.no_grad()
def _plain(backbone: TwoTower, train: Examples, config: TrainConfig) -> Tensor:
    """Return the features of training images without a prompt."""
    if isinstance(train, FeatureExamples):
        return train.frozen
    return features_of(backbone, None, train, precision=config.precision)
