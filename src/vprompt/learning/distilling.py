"""Distilling: a prompt that is trained on labels and drawn towards what a teacher says."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from vprompt.core.files import digest
from vprompt.learning.adapter import Adapter, PromptAdapter


class Distilled(PromptAdapter):
    """A prompt that is also drawn towards logits `[images, classes]` of the training images.

    They are computed before the training, in evaluation mode and without a graph, so a teacher
    costs nothing in a step and no gradient reaches it.
    """

    def __init__(
        self, student: Adapter, teacher: Tensor, weight: float, loss: str, temperature: float
    ) -> None:
        prompt = student.prompt()
        assert prompt is not None
        super().__init__(student.backbone, prompt)
        self.teacher, self.weight = teacher.detach(), weight
        self.loss, self.temperature = loss, temperature

    def extra_loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the distance from the teacher's logits, as a share of the loss."""
        teacher = self.teacher[rows].to(logits)
        if self.loss != "kl":
            square = functional.mse_loss(logits, teacher)
            return self.weight * (square / len(rows) if self.loss == "published" else square)
        ours, theirs = logits / self.temperature, teacher / self.temperature
        distance = functional.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
        )
        return self.weight * self.temperature**2 * distance

    def identity(self) -> dict[str, Any]:
        """Add the teacher and how it draws."""
        return {
            **super().identity(),
            "teacher": digest(self.teacher.contiguous().numpy().tobytes()),
            "weight": self.weight,
            "loss": self.loss,
            "temperature": self.temperature,
        }
