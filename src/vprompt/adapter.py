"""Adapter: what a method trains beside the head; every method of `adapters/` returns one."""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vprompt import compose
from vprompt.backbone import Backbone, extract
from vprompt.errors import VPromptError
from vprompt.files import digest
from vprompt.prompt import Prompt
from vprompt.types import Features, Images, Weights


class Adapter(nn.Module, abc.ABC):
    """A frozen backbone together with the parameters that a method trains."""

    backbone: Backbone

    @abc.abstractmethod
    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return pooled features; `generator` is given in training and drives any dropout."""

    @abc.abstractmethod
    def prompt(self) -> Prompt | None:
        """Return the learned prompt as a value, or None where the method has none."""

    def identity(self) -> dict[str, Any]:
        """Return what determines training beside the parameters' values; JSON-able."""
        return {"adapter": type(self).__name__}


class NoAdapter(Adapter):
    """Nothing is trained but the head, so features can be computed once."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the frozen backbone's features."""
        del generator
        return extract(self.backbone, images)

    def prompt(self) -> None:
        """Return nothing: no prompt is learned."""


class WeightedSum(Adapter):
    """The weighted sum of prompts whose tokens correspond; trained are the weights alone.

    They are the softmax of the parameters, so they stay positive with sum 1.
    """

    def __init__(
        self, backbone: Backbone, prompts: Sequence[Prompt], weights: Weights, scale: str
    ) -> None:
        super().__init__()
        self.backbone, self.sources, self.scale = backbone, list(prompts), scale
        # A weight of exactly 0 could never grow again.
        start = weights.double().clamp_min(0.01 / len(prompts))
        self.logits = nn.Parameter(start.log().float().to(backbone.device))

    def weights(self) -> Weights:
        """Return the weights as they are now, with their gradient."""
        return self.logits.softmax(0)

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features under the sum."""
        del generator
        return extract(self.backbone, images, self._sum())

    def prompt(self) -> Prompt:
        """Return the sum, detached."""
        summed = self._sum()
        return Prompt(summed.tokens.detach().cpu(), summed.blocks.cpu(), summed.persist)

    def identity(self) -> dict[str, Any]:
        """Add the prompts and how they are scaled."""
        tokens = (prompt.tokens.cpu().contiguous().numpy().tobytes() for prompt in self.sources)
        return {**super().identity(), "prompts": digest(*tokens), "scale": self.scale}

    def _sum(self) -> Prompt:
        device = self.backbone.device
        moved = [Prompt(p.tokens.to(device), p.blocks.to(device), p.persist) for p in self.sources]
        return compose.combine(moved, self.weights(), scale=self.scale)


class PromptAdapter(Adapter):
    """A prompt whose tokens are trained in place."""

    blocks: Tensor

    def __init__(self, backbone: Backbone, start: Prompt, *, prompt_dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= prompt_dropout < 1:
            raise VPromptError(f"prompt_dropout lies in [0, 1), but got {prompt_dropout}.")
        self.backbone, self.persist, self.prompt_dropout = backbone, start.persist, prompt_dropout
        device = backbone.device
        self.tokens = nn.Parameter(start.tokens.detach().clone().to(device))
        self.register_buffer("blocks", start.blocks.clone().to(device))

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features under the prompt; dropout draws a mask for every image, as VPT."""
        prompt = Prompt(self.tokens, self.blocks, self.persist)
        rows = None
        if generator is not None and self.prompt_dropout > 0:
            shape = (len(images), *self.tokens.shape)
            kept = torch.rand(shape, generator=generator) >= self.prompt_dropout
            rows = self.tokens * kept.to(self.tokens) / (1 - self.prompt_dropout)
        return extract(self.backbone, images, prompt, rows)

    def prompt(self) -> Prompt:
        """Return the tokens as they are now, detached."""
        return Prompt(self.tokens.detach().clone().cpu(), self.blocks.cpu(), self.persist)

    def identity(self) -> dict[str, Any]:
        """Add placement and dropout."""
        return {
            **super().identity(),
            "blocks": self.blocks.tolist(),
            "persist": self.persist,
            "prompt_dropout": self.prompt_dropout,
        }
