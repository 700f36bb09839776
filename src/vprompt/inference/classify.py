"""Classify: a finished artefact as a torch module, to be called or put into one's own program."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.artifacts.artifact import Artifact
from vprompt.core.errors import VPromptError
from vprompt.core.precision import autocast
from vprompt.core.progress import SILENT, Progress
from vprompt.core.types import Images
from vprompt.data import inputs
from vprompt.data.targets import CLASS, SEVERAL
from vprompt.inference.prediction import Prediction, predict
from vprompt.learning.adapter import Adapter
from vprompt.models.backbone import Backbone, extract
from vprompt.models.heads import Head
from vprompt.opening import open_adapter, open_artifact, open_for


class Classifier(nn.Module):
    """Images in, logits `[batch, classes]` out: backbone, prompt and head of one artefact.

    It takes normalised tensors `[batch, 3, height, width]`, as `preprocess` returns them, and
    everything that `preprocess` takes. An artefact of numbers gives `[batch, 1]`, the numbers. No
    parameter asks for a gradient until you say so, but gradients with respect to the images pass
    through. With `check`, float tensors that cannot be normalised images raise a VPromptError.
    """

    tokens: nn.Parameter | None

    def __init__(
        self,
        artifact: Artifact,
        backbone: Backbone,
        *,
        precision: str = "auto",
        check: bool = True,
    ) -> None:
        super().__init__()
        self.artifact, self.backbone = artifact, backbone
        self.precision, self.check = precision, check
        adapted = open_adapter(artifact, backbone)
        self.adapter = adapted if isinstance(adapted, Adapter) else None
        self._prompt = None if isinstance(adapted, Adapter) else adapted
        self.tokens = None if self._prompt is None else nn.Parameter(self._prompt.tokens.clone())
        self.weight = nn.Parameter(artifact.head.weight.clone())
        self.bias = nn.Parameter(artifact.head.bias.clone())
        self.requires_grad_(False)
        self.to(backbone.device)
        self.eval()

    @property
    def classes(self) -> list[str]:
        """The labels in the order of the logits; of numbers, what they measure."""
        return self.artifact.classes

    @property
    def target(self) -> str:
        """What it gives an image: `class`, `several` classes, or a `number`."""
        return self.artifact.head.target

    @property
    def thresholds(self) -> Tensor | None:
        """From which probability on an image has each of several classes; else None."""
        return self.artifact.head.thresholds

    def preprocess(self, images: Any) -> Tensor:
        """Return normalised images at the artefact's size; see `Artifact.preprocess`."""
        return self.artifact.preprocess(images)

    def features(self, images: Any) -> Tensor:
        """Return the features `[batch, width]` that the head reads, in fp32."""
        ready = self._ready(images)
        with autocast(self.precision, ready.device):
            if self.adapter is not None:
                return self.adapter.features(ready).float()
            prompt = self._prompt
            if prompt is not None and self.tokens is not None:
                prompt = prompt.with_tokens(self.tokens)
            return extract(self.backbone, ready, prompt).float()

    def forward(self, images: Any) -> Tensor:
        """Return logits `[batch, classes]`, or numbers `[batch, 1]`.

        The softmax of logits is the probability of each class. For several classes per image it is
        their sigmoid.
        """
        head = Head(self.weight, self.bias, cosine=self.artifact.head.cosine)
        return head.logits(self.features(images))

    def predict(self, images: Any, **settings: Any) -> list[Prediction]:
        """Return one prediction per image: label and probabilities, several labels, or a number.

        `images` and `settings` are those of `vprompt.predict`. It uses the tokens of the artefact,
        even if the parameters of this module were changed since.
        """
        settings = {"precision": self.precision, **settings}
        return predict(images, artifact=self.artifact, model=self.backbone, force=True, **settings)

    def extra_repr(self) -> str:
        """Name the artefact, its classes and its input."""
        config = self.artifact.data_config
        what = f"{len(self.classes)} classes"
        if self.target != CLASS:
            what = f"{self.target} of {what}" if self.target == SEVERAL else self.classes[0]
        shown = f"{self.artifact.name}: {what}, {config.shown_size} px"
        return f"{shown}, {self.backbone.name}"

    def _ready(self, images: Any) -> Images:
        """Return a normalised batch on the backbone's device."""
        prepared = isinstance(images, Tensor) and images.is_floating_point()
        if not prepared:
            made = self.preprocess(images)
            made = made if made.ndim == 4 else made[None]
            return made.to(self.backbone.device)
        batch: Tensor = images if images.ndim == 4 else images[None]
        size = self.artifact.data_config.input_size
        # `shape`, one by one: an exported model then takes batches of any size.
        if batch.ndim != 4 or tuple(batch.shape[1:]) != size:
            raise VPromptError(
                f"A classifier takes normalised tensors [batch, {size[0]}, {size[1]}, {size[2]}], "
                f"but got {list(images.shape)}. `classifier.preprocess(images)` makes them of "
                "paths, Pillow images, arrays and tensors of any size."
            )
        batch = batch.to(self.backbone.device, torch.float32)
        if self.check and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            plain = replace(self.artifact.data_config, values=None)
            inputs.check_normalised(batch, plain)
        return batch


def load(
    place: Path | str | Artifact,
    *,
    model: str | Backbone | None = None,
    device: str = "auto",
    precision: str = "auto",
    check: bool = True,
    force: bool = False,
    progress: Progress = SILENT,
) -> Classifier:
    """Return an artefact, from a folder or `hf-hub:user/name`, as a module that labels images.

    The backbone is the one that the artefact names, unless `model` gives another. It is compared
    with the artefact's fingerprint, unless `force`. `check=False` does not look at the range of
    float input. `precision` is `auto`, `fp32` or `bf16`.

    Raises VPromptError if the artefact is damaged, or does not fit the backbone.
    """
    loaded = open_artifact(place, progress=progress)
    backbone = open_for(loaded, model, device=device, force=force, progress=progress)
    return Classifier(loaded, backbone, precision=precision, check=check)
