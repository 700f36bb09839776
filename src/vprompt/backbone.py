"""Backbone: a frozen vision transformer cut into embed, blocks and pool; `walk` inserts prompts.

Whatever the model and whatever the placement, prompt tokens enter in this file and nowhere else.
"""

import abc
import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from vprompt.attention import Attend
from vprompt.errors import VPromptError
from vprompt.preprocessing import DataConfig
from vprompt.prompt import Prompt
from vprompt.types import Features, Images, PromptRows, SamplePromptTokens, Tokens


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

    def prompted_block(
        self, index: int, tokens: Tokens, prompt: PromptRows, attend: Attend | None = None
    ) -> Tokens:
        """Run one block in which prompt rows `[batch or 1, count, dim]` are keys and values only.

        Here the rows are joined and their outputs dropped, which is exact for every block that
        treats tokens alike. A subclass that can look inside its blocks saves the queries and the
        MLP of those rows, and lets `attend` say what queries make of the prompt's keys.
        """
        if attend is not None:
            raise VPromptError(
                f"The attention of {self.name!r} cannot be reached, so its prompts can be neither "
                "gated nor searched. Use a timm model of the `vit_*` or `deit*` families."
            )
        return _join(self, tokens, prompt, index)[1]

    def feed_forward(self, index: int) -> nn.Module:
        """Return the module whose output a block adds to its residual last; here there is none."""
        raise VPromptError(
            f"The blocks of {self.name!r} cannot be looked into, so nothing can be put after block "
            f"{index}'s feed-forward. Use a timm model of the `vit_*` or `deit*` families."
        )

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
    attend: Callable[[int], Attend | None] | None = None,
) -> Iterator[tuple[int, Tokens]]:
    """Run the blocks one by one and yield `(block, sequence after it)`, without prompt rows.

    Prompt rows stand after the prefix tokens where a later block still needs them (VPT-Shallow),
    and are keys and values only where none does (VPT-Deep, and any prompt in its last block).
    `tokens` replaces the prompt's own tokens by a set per image (per-sample dropout, or another
    prompt for every image), at the same placement. `attend` names a block's attention over the
    prompt's keys; it needs a prompt that does not travel on.
    """
    sequence = backbone.embed(images)
    own: list[Tensor] = [sequence[:, :0]] * backbone.depth
    persist = prompt is not None and prompt.persist
    if prompt is not None:
        _check_fits(backbone, prompt)
        shared = prompt.tokens[None] if tokens is None else tokens
        own = list(shared.split(prompt.counts(backbone.depth), dim=1))
    rows: Tensor | None = None
    for index in range(backbone.depth):
        if own[index].shape[1]:
            rows = own[index]
        if rows is None:
            sequence = backbone.block(index, sequence)
        elif persist and index + 1 < backbone.depth and not own[index + 1].shape[1]:
            rows, sequence = _join(backbone, sequence, rows, index)
        else:
            chosen = None if attend is None else attend(index)
            sequence = backbone.prompted_block(index, sequence, rows, chosen)
            rows = None
        yield index, sequence


def extract(
    backbone: Backbone,
    images: Images,
    prompt: Prompt | None = None,
    tokens: SamplePromptTokens | None = None,
    attend: Callable[[int], Attend | None] | None = None,
) -> Features:
    """Return the pooled features under a prompt; its own rows are never pooled. See `walk`."""
    *_, (_, sequence) = walk(backbone, images, prompt, tokens, attend)
    return backbone.pool(sequence)


def _join(
    backbone: Backbone, tokens: Tokens, rows: PromptRows, index: int
) -> tuple[Tensor, Tokens]:
    """Run one block with prompt rows after the prefix; return what became of them and the rest."""
    prefix, count = backbone.prefix, rows.shape[1]
    inside = rows.expand(len(tokens), -1, -1).to(tokens.dtype)
    joined = torch.cat([tokens[:, :prefix], inside, tokens[:, prefix:]], dim=1)
    after = backbone.block(index, joined)
    rest = torch.cat([after[:, :prefix], after[:, prefix + count :]], dim=1)
    return after[:, prefix : prefix + count], rest


def _check_fits(backbone: Backbone, prompt: Prompt) -> None:
    if prompt.dim != backbone.dim:
        raise VPromptError(
            f"The prompt's tokens have width {prompt.dim}, but {backbone.name!r} has width "
            f"{backbone.dim}. Load the backbone that the prompt was learned on."
        )
