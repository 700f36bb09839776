"""Looking: where the class token and the prompt's tokens look, block by block and head by head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprompt.artifacts.artifact import Artifact
from vprompt.core.errors import VPromptError
from vprompt.models.backbone import Backbone, walk
from vprompt.opening import open_adapter
from vprompt.prompts.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Block:
    """One block: maps over the patches, and the shares that go to prompt tokens.

    `token` `[heads, rows, columns]` is where the class token looks, or all patches on average where
    the model has none; `prompt` `[count, heads, rows, columns]` where each prompt token does.
    `to_prompt` `[heads, count]` is how much of the class token's look each prompt token takes.
    """

    token: Tensor
    prompt: Tensor
    to_prompt: Tensor


@dataclass(frozen=True, eq=False)
class Looks:
    """All blocks of one image under one prompt, or under none.

    `rollout` `[rows, columns]` is what of the patches reaches the class token through all blocks,
    and `from_prompt` what share of it came from prompt tokens instead.
    """

    blocks: tuple[Block, ...]
    rollout: Tensor
    from_prompt: float


def look(backbone: Backbone, pixels: NDArray[np.uint8], prompt: Prompt | None) -> Looks:
    """Return where one image's tokens look; `pixels` are at the backbone's size."""
    images = backbone.normalise(torch.from_numpy(pixels.copy())[None].to(backbone.device))
    _, height, width = backbone.data_config.input_size
    grid = (height // backbone.patch_size[0], width // backbone.patch_size[1])
    counts = prompt.counts(backbone.depth) if prompt is not None else [0] * backbone.depth
    blocks: list[Block] = []
    flow = _Flow(backbone.prefix)

    def watch(index: int, tokens: Tensor, rows: Tensor | None) -> None:
        count = 0 if rows is None else rows.shape[1]
        joined = tokens
        if rows is not None:
            inside = rows.expand(len(tokens), -1, -1).to(tokens.dtype)
            joined = torch.cat([tokens, inside], dim=1)
        weights = backbone.attention_of(index, joined)[0].float().cpu()
        blocks.append(_block(weights, backbone.prefix, count, grid))
        flow.through(weights.mean(0), count, fresh=counts[index] > 0)

    with torch.no_grad():
        for _ in walk(backbone, images, prompt, watch=watch):
            pass
    total, reached = flow.of_token()
    return Looks(tuple(blocks), reached.unflatten(0, grid), total)


def prompt_of(artifact: Artifact, backbone: Backbone) -> Prompt | None:
    """Return the prompt that an artefact's images are seen under; others have none to look for."""
    found = open_adapter(artifact, backbone)
    if found is not None and not isinstance(found, Prompt):
        raise VPromptError(
            f"{artifact.config.get('method', 'This method')} has no prompt of one kind for all "
            "images, so there is nothing to compare with and without. Give an artefact that holds "
            "a prompt."
        )
    return None if found is None else found.to(backbone.device)


def _block(weights: Tensor, prefix: int, count: int, grid: Sequence[int]) -> Block:
    """Cut `[heads, from, to]`, where prompt tokens stand last, into the parts that are drawn."""
    patches = weights.shape[1] - prefix - count
    onto = weights[:, :, prefix : prefix + patches].unflatten(-1, (grid[0], grid[1]))
    if prefix:
        token, share = onto[:, 0], weights[:, 0, prefix + patches :]
    else:
        token, share = onto[:, :patches].mean(1), weights[:, :patches, patches:].mean(1)
    return Block(token, onto[:, prefix + patches :].transpose(0, 1), share)


class _Flow:
    """Rollout: what of each patch is in each token, half of which every block leaves as it was.

    Reference: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020,
    arXiv 2005.00928.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.tokens: Tensor | None = None  # [tokens, tokens]: of which image tokens each is made
        self.rows = torch.zeros(0, 0)  # [count, tokens]: the same for prompt rows that travel on

    def through(self, weights: Tensor, count: int, *, fresh: bool) -> None:
        """Pass one block, `weights` `[from, to]` with `count` prompt rows last."""
        size = len(weights) - count
        if self.tokens is None:
            self.tokens = torch.eye(size)
        if fresh or self.rows.shape != (count, size):
            self.rows = torch.zeros(count, size)  # nothing of the image is in them yet
        mixed = 0.5 * weights + 0.5 * torch.eye(len(weights))
        both = mixed @ torch.cat([self.tokens, self.rows])
        self.tokens, self.rows = both[:size], both[size:]

    def of_token(self) -> tuple[float, Tensor]:
        """Return what of the class token came from prompts, and what from each patch."""
        assert self.tokens is not None
        made = self.tokens[0] if self.prefix else self.tokens.mean(0)
        return float(1 - made.sum()), made[self.prefix :]
