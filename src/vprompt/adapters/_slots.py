"""Tokens in word slots at the first blocks of a text tower: where they enter and how they start."""

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.types import Blocks, PromptTokens
from vprompt.data.sentences import GENERIC
from vprompt.learning.text_adapter import normal_rows, word_rows
from vprompt.models.two_tower import TwoTower


def first_blocks(count: int, depth: int | None, available: int, tower: str) -> Blocks:
    """Return the block of every token, `count` in each of the first `depth` blocks."""
    depth = available if depth is None else depth
    if not 1 <= depth <= available:
        raise VPromptError(
            f"depth is 1 to {available}, the blocks of the {tower} tower, but got {depth}."
        )
    return torch.arange(depth).repeat_interleave(count)


def text_start(clip: TwoTower, count: int, total: int, seed: int) -> PromptTokens:
    """Return the first words of the template, then noise for the deeper blocks."""
    words = word_rows(clip, GENERIC[0].partition("{}")[0].strip())
    if count > len(words):
        raise VPromptError(
            f"{GENERIC[0]!r} has {len(words)} words before the class name, but {count} text tokens "
            "were asked for; more would overwrite the name itself."
        )
    generator = stream(seed, "prompt_init, text")
    deeper = normal_rows(total - count, clip.text.dim, 0.02, generator)
    return torch.cat([words[:count], deeper])
