"""Distillation from the same model without prompts, which keeps what zero-shot already knows.

Reference: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.classifier import FeatureExamples
from vprompt.errors import VPromptError
from vprompt.features import features_of
from vprompt.task import Examples
from vprompt.text_adapter import ReadingAdapter, TextAdapter, TowersAdapter
from vprompt.train_config import TrainConfig
from vprompt.two_tower import TextPrompt, TwoTower, text_head


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
    """Training images are not augmented, so the teacher sees each of them once, at the start."""

    teacher: Teacher
    _taught: Tensor | None = None  # logits of all training images, `[images, classes]`

    def begin(self, train: Examples, config: TrainConfig) -> None:
        """Let the teacher see the training images; at weight 0 there is none."""
        if not self.teacher.weight:
            return
        read = TextPrompt(self.teacher.templates or self.read)
        features = _plain(self.backbone, train, config)
        self._taught = text_head(self.backbone, self.classes, read).logits(features)

    def extra_loss(self, logits: Tensor, rows: Tensor) -> Tensor | None:
        """Return how far the logits are from the teacher's."""
        if self._taught is None:
            return None
        return self.teacher.loss(logits, self._taught[rows].to(logits))

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
