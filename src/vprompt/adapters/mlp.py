"""MLP: a head of several layers on the frozen features, which are computed once.

Reference: MLP-k in Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.registry import suggest
from vprompt.core.types import Features
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter, FeatureAdapter
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone

NORMS = ("batch", "layer")


def build(
    backbone: Backbone,
    *,
    num_layers: int = 3,
    norm: str = "batch",
    dropout: float = 0.1,
    init_seed: int = 0,
) -> Adapter:
    """Train `num_layers` linear layers, the last of which is the head.

    Each of the others is as wide as the features and followed by ReLU, norm and dropout. `batch`
    is the published norm; `layer` does not depend on which images share a batch.
    """
    if num_layers < 1:
        raise VPromptError(f"mlp has at least one layer, but got num_layers={num_layers}.")
    if norm not in NORMS:
        raise VPromptError(f"mlp has no norm {norm!r}.{suggest(norm, NORMS)}")
    if not 0 <= dropout < 1:
        raise VPromptError(f"The dropout of mlp lies in [0, 1), but got {dropout}.")
    return HiddenLayers(backbone, num_layers - 1, norm, dropout, init_seed)


def training(**settings: object) -> dict[str, Any]:
    """Return the rate that the hidden layers want."""
    del settings
    return {"lr": 1e-2}


class HiddenLayers(FeatureAdapter):
    """Linear, ReLU, norm and dropout, `count` times, at the width of the features."""

    def __init__(
        self, backbone: Backbone, count: int, norm: str, dropout: float, seed: int
    ) -> None:
        super().__init__(backbone)
        self.shares_steps = norm != "batch"  # which sees a whole batch
        self.norm, self.dropout, width = norm, dropout, backbone.feature_dim
        generator = stream(seed, "mlp")
        layers, norms = [], []
        for _ in range(count):
            layer = nn.Linear(width, width)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", generator=generator)
            nn.init.zeros_(layer.bias)
            layers.append(layer)
            norms.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)
        self.layers.to(backbone.device)
        self.norms.to(backbone.device)

    @torch.no_grad()
    def begin(self, train: Examples, config: TrainConfig) -> None:
        """Set the statistics of every batch norm, which the head at the start already needs."""
        del config
        features, _ = next(train.batches(len(train)))
        features = features.to(self.backbone.device)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = functional.relu(layer(features))
            if isinstance(norm, nn.BatchNorm1d):
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean.copy_(hidden.mean(0))
                norm.running_var.copy_(hidden.var(0, correction=min(1, len(hidden) - 1)))
            features = norm.eval()(hidden)

    def transform(
        self, features: Features, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return the last hidden layer; with a generator, in training state."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            features = functional.relu(layer(features))
            # A batch of one image has no variance of its own.
            features = norm.train(generator is not None and len(features) > 1)(features)
            if generator is not None and self.dropout > 0:
                kept = torch.rand(features.shape, generator=generator) >= self.dropout
                features = features * kept.to(features) / (1 - self.dropout)
        return features

    def identity(self) -> dict[str, Any]:
        """Add norm and dropout."""
        return {**super().identity(), "norm": self.norm, "dropout": self.dropout}
