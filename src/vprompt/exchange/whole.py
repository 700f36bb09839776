"""Whole: backbone, prompt and head as one module, perhaps with the resize of its images."""

from typing import Any

import torch
from torch import Tensor, nn

from vprompt.artifacts.artifact import Artifact
from vprompt.exchange.resizing import Resizing
from vprompt.inference.classify import Classifier
from vprompt.models.backbone import Backbone


class Whole(nn.Module):
    """What is exported: an artefact's classifier, frozen, in fp32.

    With `preprocess` it takes pixels `uint8 [batch, height, width, 3]` of any size, else what the
    classifier takes: normalised images at the backbone's size.
    """

    def __init__(self, artifact: Artifact, backbone: Backbone, *, preprocess: bool) -> None:
        super().__init__()
        self.classifier = Classifier(artifact, backbone, precision="fp32", check=False)
        self.resizing = Resizing(artifact.data_config) if preprocess else None
        self.head = artifact.head
        self.requires_grad_(False).eval()

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.classifier.backbone

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[batch, classes]`."""
        if self.resizing is not None:
            images = self.backbone.normalise(self.resizing(images))
        logits: Tensor = self.classifier(images)
        return logits

    def example(self, count: int = 2) -> Tensor:
        """Return inputs to trace the module with."""
        _, height, width = self.backbone.data_config.input_size
        if self.resizing is not None:
            return torch.zeros(count, height + 5, width + 3, 3, dtype=torch.uint8)
        return torch.zeros(count, 3, height, width)

    def dynamic(self) -> dict[int, Any]:
        """Return the dimensions of the inputs that may be of any size."""
        names = ["batch"] if self.resizing is None else ["batch", "height", "width"]
        return {place: torch.export.Dim(name) for place, name in enumerate(names)}
