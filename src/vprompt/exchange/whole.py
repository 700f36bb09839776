"""Whole: backbone, prompt and head as one module, images in and logits out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.artifacts.artifact import Artifact
from vprompt.exchange.resizing import Resizing
from vprompt.learning.adapter import Adapter
from vprompt.models.backbone import Backbone, extract
from vprompt.opening import open_adapter
from vprompt.prompts.prompt import Prompt


class Whole(nn.Module):
    """One model that an artefact and its backbone make: frozen, in fp32.

    With `preprocess` it takes pixels `uint8 [batch, height, width, 3]` of any size, else what the
    backbone takes: normalised images at its size.
    """

    weight: Tensor
    bias: Tensor
    tokens: Tensor

    def __init__(self, artifact: Artifact, backbone: Backbone, *, preprocess: bool) -> None:
        super().__init__()
        self.backbone = backbone
        adapted = open_adapter(artifact, backbone)
        self.adapter = adapted if isinstance(adapted, Adapter) else None
        self.placed = adapted if isinstance(adapted, Prompt) else None
        self.resizing = Resizing(artifact.data_config) if preprocess else None
        self.head = artifact.head
        self.cosine = artifact.head.cosine
        self.register_buffer("weight", artifact.head.weight.float())
        self.register_buffer("bias", artifact.head.bias.float())
        if self.placed is not None:
            self.register_buffer("tokens", self.placed.tokens.float())
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[batch, classes]`."""
        if self.resizing is not None:
            images = self.backbone.normalise(self.resizing(images))
        features = self._features(images)
        if self.cosine:
            features = functional.normalize(features, dim=-1)
        return functional.linear(features, self.weight, self.bias)

    def _features(self, images: Tensor) -> Tensor:
        if self.adapter is not None:
            return self.adapter.features(images)
        prompt = None if self.placed is None else self.placed.with_tokens(self.tokens)
        return extract(self.backbone, images, prompt)

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
