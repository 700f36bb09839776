"""Prompt: learned tokens for a frozen backbone, as a value that can be added, scaled and moved.

Placement is data: `blocks` holds, for every token, the block it enters. All zeros is VPT-Shallow,
a spread over all blocks is VPT-Deep, and relocating a token is changing one integer.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.types import Blocks, PromptTokens, Which


@dataclass(frozen=True, eq=False)
class Prompt:
    """Tokens `[count, dim]` in the order of their `blocks` `[count]`.

    A block that brings rows of its own replaces all earlier prompt rows. Where it brings none,
    `persist` decides: the earlier rows travel on (VPT-Shallow) or are dropped (VPT-Deep).

    `places` are the blocks once more, as plain numbers: what is decided by them is decided before
    a model runs, so that `torch.export` meets no branch on a tensor's values.
    """

    tokens: PromptTokens
    blocks: Blocks
    persist: bool = True
    places: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that every token has one block, in rising order."""
        object.__setattr__(self, "places", tuple(self.blocks.tolist()))
        self._check_count(self.tokens)
        if list(self.places) != sorted(self.places) or min(self.places, default=0) < 0:
            raise VPromptError(
                f"The blocks of a prompt are in rising order from 0, but got "
                f"{list(self.places)}. Sort tokens and blocks together."
            )

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.tokens.shape[1]

    def counts(self, depth: int) -> list[int]:
        """Return how many tokens enter each of the `depth` blocks."""
        if self.places and self.places[-1] >= depth:
            raise VPromptError(
                f"The prompt has tokens for block {self.places[-1]}, but the backbone has "
                f"only {depth} blocks (0 to {depth - 1})."
            )
        return [self.places.count(block) for block in range(depth)]

    def to(self, device: torch.device) -> "Prompt":
        """Return the same prompt on another device."""
        return self._changed(tokens=self.tokens.to(device), blocks=self.blocks.to(device))

    def with_tokens(self, tokens: PromptTokens) -> "Prompt":
        """Return the same placement with other tokens."""
        self._check_count(tokens)
        return self._changed(tokens=tokens)

    def _check_count(self, tokens: PromptTokens) -> None:
        if len(tokens) != len(self.places):
            raise VPromptError(
                f"A prompt needs one block per token, but got {len(tokens)} tokens and "
                f"{len(self.places)} blocks."
            )

    def _changed(self, **tensors: torch.Tensor) -> "Prompt":
        """Return a prompt with the same places; they are not read from a tensor once more."""
        made = copy.copy(self)
        for name, tensor in tensors.items():
            object.__setattr__(made, name, tensor)
        return made


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """A prompt for every image of a batch: image i sees `prompts[which[i]]`, `which` `[batch]`.

    They may differ in length, placement and persistence; a prompt of no tokens is none at all.
    """

    prompts: Sequence[Prompt]
    which: Which

    def __post_init__(self) -> None:
        """Check that every image has one of the prompts, and that all have one width."""
        if len({prompt.dim for prompt in self.prompts}) != 1:
            widths = sorted({prompt.dim for prompt in self.prompts})
            raise VPromptError(f"The prompts of a batch have one width, but got {widths}.")
        if len(self.which) and not 0 <= int(self.which.min()) <= int(self.which.max()) < len(
            self.prompts
        ):
            raise VPromptError(
                f"Every image names one of the {len(self.prompts)} prompts, counted from 0, but "
                f"got {self.which.tolist()}."
            )


def place(num_virtual_tokens: int | Sequence[int], depth: int, *, deep: bool) -> Blocks:
    """Return the block of every token: a number is per block, a list names every block's count."""
    if isinstance(num_virtual_tokens, int):
        counts = [num_virtual_tokens] * depth if deep else [num_virtual_tokens] + [0] * (depth - 1)
    else:
        counts = list(num_virtual_tokens)
    if len(counts) != depth or min(counts) < 0:
        raise VPromptError(
            f"num_virtual_tokens needs one count of at least 0 for each of the backbone's {depth} "
            f"blocks, but got {counts}."
        )
    if sum(counts) == 0:
        raise VPromptError(
            "A prompt of no tokens learns nothing. Set num_virtual_tokens to at least 1, or use "
            "the method `linear`."
        )
    return torch.repeat_interleave(torch.arange(depth), torch.tensor(counts))


def vpt_uniform(
    blocks: Blocks, dim: int, patch_size: tuple[int, int], *, generator: torch.Generator
) -> PromptTokens:
    """Draw tokens from U(-v, v), v = sqrt(6 / (3 * patch height * patch width + dim)).

    Reference: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119.
    """
    bound = (6 / (3 * patch_size[0] * patch_size[1] + dim)) ** 0.5
    return (2 * torch.rand(len(blocks), dim, generator=generator) - 1) * bound


def prompt_digest(prompt: Prompt | None) -> str:
    """Return a SHA-256 over tokens, blocks and persistence; `none` without a prompt."""
    if prompt is None:
        return "none"
    tokens = prompt.tokens.detach().cpu().contiguous()
    parts = (str(tokens.dtype), str(prompt.blocks.tolist()), str(prompt.persist))
    return digest(*parts, tokens.numpy().tobytes())
