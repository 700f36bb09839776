"""Mixture: a prompt of every image's own, which an attention puts together from a pool's prompts.

Reference: Asai et al., "ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of
Soft Prompts", EMNLP 2022, arXiv 2205.11961.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.core.precision import autocast
from vprompt.core.randomness import stream
from vprompt.core.registry import Spec
from vprompt.core.types import Features, Images
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter, Training
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone, extract
from vprompt.prompts.prompt import Prompt

_TRIAL = 64  # images that the temperature is measured on


class InstanceMixture(Adapter):
    """The target's prompt plus the mean of all prompts, weighed anew for every image.

    With P the target's prompt and P_1..P_M the sources', all of one placement, an image x gets
    P + sum_j a_j(x) P_j, where j also runs over the target's prompt: it counts in the sum and is
    added again. a(x) = softmax_j(max(P_j) . h(x) / T), max over tokens, and h(x) =
    LayerNorm(W_up SiLU(W_down max(E(x)))), max over the image's embedded tokens. Trained are P and
    both W; the LayerNorm has no parameters.

    Without a `temperature`, T is chosen on the training images so that the logits of an image have
    a standard deviation of 1 over the prompts, before anything is trained. `attention_rate` is the
    rate of both W as a share of the prompt's.
    """

    sources: Tensor
    blocks: Tensor
    temperature: Tensor

    def __init__(
        self,
        backbone: Backbone,
        sources: Sequence[Prompt],
        own: Prompt,
        *,
        bottleneck: int = 100,
        temperature: float | None = None,
        attention_rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone, self.persist = backbone, own.persist
        self.calibrated, self.attention_rate = temperature is None, attention_rate
        device, generator = backbone.device, stream(seed, "mixture")
        self.tokens = nn.Parameter(own.tokens.detach().clone().to(device))
        self.down = nn.Parameter(_linear(bottleneck, backbone.dim, generator).to(device))
        self.up = nn.Parameter(_linear(backbone.dim, bottleneck, generator).to(device))
        stacked = torch.stack([prompt.tokens.detach() for prompt in sources])
        start = torch.tensor(temperature or math.sqrt(backbone.dim))
        self.register_buffer("sources", stacked.to(device))
        self.register_buffer("blocks", own.blocks.clone().to(device))
        self.register_buffer("temperature", start.to(device))
        settings = {
            "sources": len(stacked),
            "num_virtual_tokens": own.counts(backbone.depth),
            "persist": own.persist,
            "bottleneck": bottleneck,
        }
        self.opens_as = str(Spec("attempt", settings))

    def logits(self, images: Images) -> Tensor:
        """Return `[batch, sources + 1]` before the temperature; the last is the target's prompt."""
        query = self.backbone.embed(images).float().amax(1)
        keys = torch.cat([self.sources, self.tokens[None]]).amax(1)
        with autocast("fp32", query.device):
            hidden = functional.silu(query @ self.down.T) @ self.up.T
            return functional.layer_norm(hidden, hidden.shape[1:]) @ keys.T

    def attention(self, images: Images) -> Tensor:
        """Return the weights of the sources and, last, of the target's prompt."""
        return (self.logits(images) / self.temperature).softmax(1)

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features of every image under its own prompt."""
        del generator
        everything = torch.cat([self.sources, self.tokens[None]])
        with autocast("fp32", self.tokens.device):
            mixed = torch.einsum("bs,scd->bcd", self.attention(images), everything)
        placed = Prompt(self.tokens, self.blocks, self.persist)
        return extract(self.backbone, images, placed, self.tokens + mixed)

    def prompt(self) -> None:
        """Return nothing: there is no one prompt for all images."""

    @torch.no_grad()
    def begin(self, train: Examples, config: TrainConfig) -> None:
        """Choose the temperature where none was given, and note the weights at the start."""
        self.memory = {"weights": [], "own_share": []}
        if self.calibrated:
            pixels, _ = next(train.batches(min(_TRIAL, len(train))))
            images = self.backbone.normalise(pixels.to(self.backbone.device))
            with autocast(config.precision, self.backbone.device):
                logits = self.logits(images)
            spread = logits.double().var(1, correction=0).mean().sqrt()
            if float(spread) > 0:
                self.temperature.copy_(spread)
        self._remember(train, config.precision)
        self._precision = config.precision

    def end_epoch(self, training: Training) -> None:
        """Note the mean weights over the training images."""
        self._remember(training.train, self._precision)

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the prompt, and the attention at its own rate."""
        return [([self.tokens], 1.0), ([self.down, self.up], self.attention_rate)]

    def identity(self) -> dict[str, Any]:
        """Add what no tensor holds."""
        return {
            **super().identity(),
            "persist": self.persist,
            "attention_rate": self.attention_rate,
        }

    @torch.no_grad()
    def _remember(self, train: Examples, precision: str) -> None:
        """Keep the mean weights of the sources, by their sum, and the share of the target's own."""
        total: Any = 0.0
        for pixels, _ in train.batches(_TRIAL):
            images = self.backbone.normalise(pixels.to(self.backbone.device))
            with autocast(precision, self.backbone.device):
                total = total + self.attention(images).double().sum(0).cpu()
        shares = total / len(train)
        weights = shares[:-1] / shares[:-1].sum()
        self.memory["weights"].append(weights.tolist())
        self.memory["own_share"].append(float(shares[-1]))


def _linear(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a weight as torch's linear layers start with."""
    bound = 1 / math.sqrt(columns)
    return (2 * torch.rand(rows, columns, generator=generator) - 1) * bound
