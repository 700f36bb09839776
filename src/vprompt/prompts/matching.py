"""Matching: which tokens correspond where prompts bring different numbers of them into a block.

The slots of a block are the tokens of a reference, the medoid among the block's longest prompts:
with the longest, every token of every source has a slot and none is dropped, as it would be if
the usual length were taken. A source fills as many slots as it has tokens there, by an optimal
assignment under the cosine; the others it leaves empty.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vprompt.core.linalg import assignment, unit_rows
from vprompt.prompts.prompt import Prompt


def differ_in_length(prompts: Sequence[Prompt]) -> bool:
    """Say whether prompts enter the same blocks in the same manner, with different counts."""
    kinds = {(p.dim, p.persist, tuple(p.blocks.unique().tolist())) for p in prompts}
    return len(kinds) == 1 and len({tuple(p.blocks.tolist()) for p in prompts}) > 1


def fill_slots(
    prompts: Sequence[Prompt], names: Sequence[str]
) -> tuple[list[Prompt], dict[str, Any]]:
    """Return the prompts on common slots, empty ones as tokens of NaN, and who fills how many.

    For prompts that `differ_in_length`. `compose.combine` sums such prompts over the sources that
    fill a slot.
    """
    orders = []
    for block in prompts[0].blocks.unique():
        rows = [(prompt.blocks == block).nonzero().flatten() for prompt in prompts]
        tokens = [prompt.tokens[own] for prompt, own in zip(prompts, rows, strict=True)]
        chosen = _assign([unit_rows(own.double()) for own in tokens])
        orders.append(
            [
                torch.where(order < 0, -1, own[order.clamp_min(0)])
                for own, order in zip(rows, chosen, strict=True)
            ]
        )
    blocks = torch.repeat_interleave(
        prompts[0].blocks.unique(), torch.tensor([len(order[0]) for order in orders])
    )
    placed, filled = [], {}
    for index, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
        order = torch.cat([each[index] for each in orders])
        tokens_of = prompt.tokens[order.clamp_min(0)]
        empty = (order < 0)[:, None]
        placed.append(Prompt(tokens_of.masked_fill(empty, torch.nan), blocks, prompt.persist))
        filled[name] = len(prompt.tokens)
    return placed, {"slots": len(blocks), "filled": filled}


def filled(prompts: Sequence[Prompt]) -> Tensor:
    """Return which slots every source fills, `[sources, slots]`."""
    return torch.stack([~prompt.tokens.isnan().any(1) for prompt in prompts])


def without_empty(prompt: Prompt) -> Prompt:
    """Return the tokens that a source has, in the order of their slots."""
    has = ~prompt.tokens.isnan().any(1)
    return Prompt(prompt.tokens[has], prompt.blocks[has], prompt.persist)


def _assign(units: Sequence[Tensor]) -> list[Tensor]:
    """Return for every source of a block the row in each slot, -1 where it has none."""
    longest = max(len(unit) for unit in units)
    means = torch.stack([unit.mean(0) for unit in units])
    nearness = (means @ means.T).sum(1)
    nearness[torch.tensor([len(unit) < longest for unit in units])] = -torch.inf
    reference = units[int(nearness.argmax())]
    orders = []
    for unit in units:
        order = torch.full((longest,), -1)
        slots, rows = assignment(reference @ unit.T)
        order[slots] = rows
        orders.append(order)
    return orders
