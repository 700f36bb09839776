"""Backbone: a frozen vision transformer cut into embed, blocks and pool; `walk` inserts prompts.

Whatever the model and whatever the placement, prompt tokens enter in this file and nowhere else.
"""

import abc
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.errors import VPromptError
from vprompt.prompt import Prompt
from vprompt.types import Features, Images, SamplePromptTokens, Tokens


@dataclass(frozen=True)
class DataConfig:
    """How pixels become a backbone's input; the keys and values are timm's.

    `crop_mode` is `squash` (resize both sides, aspect ignored, as the VTAB protocols do) or
    `center` (resize the shorter side to size / crop_pct, then cut the centre).
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 1.0
    crop_mode: str = "squash"

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, as they stand in `adapter_config.json`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataConfig":
        """Read what `to_json` wrote."""
        return cls(
            input_size=tuple(int(v) for v in values["input_size"]),  # type: ignore[arg-type]
            interpolation=str(values["interpolation"]),
            mean=tuple(float(v) for v in values["mean"]),  # type: ignore[arg-type]
            std=tuple(float(v) for v in values["std"]),  # type: ignore[arg-type]
            crop_pct=float(values.get("crop_pct", 1.0)),
            crop_mode=str(values.get("crop_mode", "squash")),
        )


class Backbone(nn.Module, abc.ABC):
    """What a prompt needs to know about a model: three cuts and a few numbers.

    A subclass sets `name`, `dim` (width of a token), `feature_dim` (width of a pooled feature),
    `depth` (number of blocks), `prefix` (class and register tokens before the patches),
    `patch_size` and `data_config`, and is frozen and in evaluation mode for good.
    """

    name: str
    dim: int
    feature_dim: int
    depth: int
    prefix: int
    patch_size: tuple[int, int]
    data_config: DataConfig
    centres_tokens: bool = True  # LayerNorm does, RMSNorm does not

    @abc.abstractmethod
    def embed(self, images: Images) -> Tokens:
        """Cut images into tokens, prefix tokens first, position embeddings added."""

    @abc.abstractmethod
    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block on a sequence of any length."""

    @abc.abstractmethod
    def pool(self, tokens: Tokens) -> Features:
        """Apply the final norm and pool as the model was built to."""

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: a frozen backbone has no dropout, whatever its parent does."""
        del mode
        return super().train(False)

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:` over the sorted parameter names with dtype, shape and bytes."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(
                value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            )
        return f"sha256:{digest.hexdigest()}"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def normalise(self, pixels: Tensor) -> Images:
        """Turn `uint8 [batch, height, width, 3]` into this model's input; writes into nothing."""
        mean = torch.tensor(self.data_config.mean, device=pixels.device) * 255
        std = torch.tensor(self.data_config.std, device=pixels.device) * 255
        return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)


def walk(
    backbone: Backbone,
    images: Images,
    prompt: Prompt | None = None,
    tokens: SamplePromptTokens | None = None,
) -> Iterator[tuple[int, int, Tokens]]:
    """Run the blocks one by one and yield `(block, prompt rows present, sequence after it)`.

    Prompt rows stand after the prefix tokens. `tokens` replaces the prompt's own tokens by a set
    per image (per-sample dropout, or another prompt for every image), at the same placement.
    """
    sequence = backbone.embed(images)
    rows: list[Tensor] = []
    if prompt is not None:
        _check_fits(backbone, prompt)
        own = prompt.tokens.expand(len(images), -1, -1) if tokens is None else tokens
        rows = list(own.split(prompt.counts(backbone.depth), dim=1))
    prefix, present = backbone.prefix, 0
    for index in range(backbone.depth):
        if prompt is not None and (rows[index].shape[1] or (present and not prompt.persist)):
            kept = sequence[:, prefix + present :]
            sequence = torch.cat([sequence[:, :prefix], rows[index].to(kept.dtype), kept], dim=1)
            present = rows[index].shape[1]
        sequence = backbone.block(index, sequence)
        yield index, present, sequence


def extract(
    backbone: Backbone,
    images: Images,
    prompt: Prompt | None = None,
    tokens: SamplePromptTokens | None = None,
) -> Features:
    """Return the pooled features under a prompt.

    The prompt rows are taken out before pooling: a class-token model would not notice them, a
    model with average or attention pooling would.
    """
    *_, (_, present, sequence) = walk(backbone, images, prompt, tokens)
    prefix = backbone.prefix
    if present:
        sequence = torch.cat([sequence[:, :prefix], sequence[:, prefix + present :]], dim=1)
    return backbone.pool(sequence)


def _check_fits(backbone: Backbone, prompt: Prompt) -> None:
    if prompt.dim != backbone.dim:
        raise VPromptError(
            f"The prompt's tokens have width {prompt.dim}, but {backbone.name!r} has width "
            f"{backbone.dim}. Load the backbone that the prompt was learned on."
        )
