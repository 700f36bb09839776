"""Compose: one prompt from many, as the weighted sum of tokens that correspond.

Tokens carry no position, so a prompt means the same in any token order. Averaging is defined only
once tokens correspond: because they grew from one initialisation, or because they were matched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import assignment, unit_rows
from vprompt.core.types import LayerWeights, PromptTokens, Weights
from vprompt.prompts.prompt import Prompt

ALIGNS = ("auto", "none", "hungarian", "placement")
SCALES = ("auto", "none", "token_norm", "ln")


def check_same_place(prompts: Sequence[Prompt], names: Sequence[str]) -> None:
    """Raise VPromptError unless all prompts have tokens in the same blocks."""
    first = prompts[0]
    for prompt, name in zip(prompts, names, strict=True):
        same = torch.equal(prompt.blocks, first.blocks) and prompt.persist == first.persist
        if not same or prompt.dim != first.dim:
            raise VPromptError(
                f"Prompts combine token by token, so all need the same placement, but {name!r} "
                f"has {_describe(prompt)} and {names[0]!r} has {_describe(first)}. Leave one of "
                "them out with --exclude, or bring deep prompts to one placement with --align "
                "placement."
            )


def match_tokens(prompts: Sequence[Prompt]) -> list[Tensor]:
    """Return for every prompt the order of its tokens that corresponds to the pool's medoid.

    Per block, an optimal assignment under the cosine (Hungarian algorithm). The medoid is the
    prompt with the largest summed token-to-token cosine, which no token order changes.
    """
    units = [unit_rows(prompt.tokens.double()) for prompt in prompts]
    means = torch.stack([unit.mean(0) for unit in units])
    reference = units[int((means @ means.T).sum(1).argmax())]
    orders = []
    for prompt, unit in zip(prompts, units, strict=True):
        order = torch.arange(len(unit))
        for block in prompt.blocks.unique():
            rows = (prompt.blocks == block).nonzero().flatten()
            _, chosen = assignment(reference[rows] @ unit[rows].T)
            order[rows] = rows[chosen]
        orders.append(order)
    return orders


def align_places(prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, Any]]:
    """Bring deep prompts of different placements to one, so that their tokens correspond.

    In every block the source with most tokens there offers its tokens as slots; those of the other
    sources are matched to them one to one, by cosine (Hungarian algorithm). A slot's support is
    how many sources fill it. As many slots are kept as the largest source has tokens: those of
    most support, among equals those that agree best. A source without a token for a kept slot
    takes the mean of those that have one, so that every sum there stays among theirs.

    Also returns how many slots there were, and the share of its slots that each source fills.
    """
    if any(prompt.persist for prompt in prompts) or len({p.dim for p in prompts}) > 1:
        raise VPromptError(
            "Only deep prompts of one width can be brought to one placement: a shallow prompt's "
            "tokens travel on through all blocks. Leave the others out with --exclude."
        )
    depth = max(int(prompt.blocks[-1]) for prompt in prompts) + 1
    slots = [slot for block in range(depth) for slot in _slots(prompts, block)]
    budget = max(len(prompt.tokens) for prompt in prompts)
    ranked = sorted(slots, key=lambda slot: (-len(slot.rows), -slot.agreement))[:budget]
    kept = sorted(ranked, key=lambda slot: slot.block)
    blocks = torch.tensor([slot.block for slot in kept])
    aligned = [
        Prompt(torch.stack([_filled(prompts, slot, index) for slot in kept]), blocks, persist=False)
        for index in range(len(prompts))
    ]
    own = [sum(index in slot.rows for slot in kept) / len(kept) for index in range(len(prompts))]
    return aligned, {"slots": len(slots), "kept": len(kept), "own": own}


@dataclass(frozen=True)
class _Slot:
    """A place in a block, and the row that each source puts there, by the source's number."""

    block: int
    rows: dict[int, int]
    agreement: float  # mean cosine with the token that offered the slot


def _slots(prompts: Sequence[Prompt], block: int) -> list[_Slot]:
    rows = [(prompt.blocks == block).nonzero().flatten() for prompt in prompts]
    units = [unit_rows(p.tokens[r].double()) for p, r in zip(prompts, rows, strict=True)]
    count = max(len(each) for each in rows)
    if not count:
        return []
    means = torch.stack([unit.sum(0) / max(len(unit), 1) for unit in units])
    # Among sources with as many tokens the medoid offers the slots, whatever the pool's order.
    nearness = (means @ means.T).sum(1)
    offers = max(
        (index for index, each in enumerate(rows) if len(each) == count),
        key=lambda index: float(nearness[index]),
    )
    filled: list[dict[int, int]] = [{} for _ in range(count)]
    cosines: list[list[float]] = [[] for _ in range(count)]
    for index, unit in enumerate(units):
        near = units[offers] @ unit.T
        for slot, row in zip(*(each.tolist() for each in assignment(near)), strict=True):
            filled[slot][index] = int(rows[index][row])
            cosines[slot].append(float(near[slot, row]))
    return [_Slot(block, f, sum(c) / len(c)) for f, c in zip(filled, cosines, strict=True)]


def _filled(prompts: Sequence[Prompt], slot: _Slot, index: int) -> Tensor:
    if index in slot.rows:
        return prompts[index].tokens[slot.rows[index]]
    given = torch.stack([prompts[source].tokens[row] for source, row in slot.rows.items()])
    shares = torch.full((len(given), 1), 1 / len(given), dtype=torch.float64)
    return _standardised_sum(given.double()[:, None], shares)[0].to(given)


def layer_shares(
    layers: LayerWeights | None, weights: Weights, prompt: Prompt
) -> Weights | LayerWeights:
    """Return what a sum is made with: one weight per source, or a row of them for every block."""
    if layers is None:
        return weights
    if len(prompt.blocks.unique()) == 1:
        raise VPromptError(
            "All tokens of these prompts enter one block, so weights that change over the layers "
            "have no meaning. Give every source one number, or combine deep prompts."
        )
    return layers


def combine(
    prompts: Sequence[Prompt], weights: Weights | LayerWeights, *, scale: str = "auto"
) -> Prompt:
    """Return the weighted sum of prompts whose tokens correspond.

    `weights` are one per source, or `[layers, sources]`: a row for every block of the backbone.
    A token of NaN is a slot that its source leaves empty (`matching.fill_slots`): the sum there is
    over the others, their weights divided by their sum; a slot that no weight fills is left out.
    Averaging tokens that point in different directions shrinks them; `scale` mends that:
    `none` (as published), `token_norm` (each token gets the weighted mean of its sources' norms),
    `ln` (sources are standardised first, then the weighted mean standard deviation is restored;
    exact for deep prompts, which are only seen through a LayerNorm). `auto` is `token_norm` for
    prompts that travel on and `ln` for those that are dropped.
    """
    if scale not in SCALES:
        raise VPromptError(f"No scale called {scale!r}. There are: {', '.join(SCALES)}.")
    check_same_place(prompts, [str(index) for index in range(len(prompts))])
    if scale == "auto":
        scale = "token_norm" if prompts[0].persist else "ln"
    stacked = torch.stack([prompt.tokens.double() for prompt in prompts])
    if weights.ndim == 2:
        _check_layers(weights, prompts[0])
        shares = weights.double()[prompts[0].blocks].T
    else:
        shares = weights.double()[:, None].expand(stacked.shape[:2])
    filled = ~stacked.isnan().any(2)
    if not bool(filled.all()):
        return _sum_of_filled(prompts[0], stacked, shares, filled, scale)
    return prompts[0].with_tokens(_sum(stacked, shares, scale))


def _sum(stacked: Tensor, shares: Tensor, scale: str) -> PromptTokens:
    if scale == "ln":
        return _standardised_sum(stacked, shares).float()
    mixed = torch.einsum("sc,sct->ct", shares, stacked)
    if scale == "token_norm":
        mixed = _restore_norm(mixed, stacked, shares)
    return mixed.float()


def _sum_of_filled(
    first: Prompt, stacked: Tensor, shares: Tensor, filled: Tensor, scale: str
) -> Prompt:
    """Return the sum over the sources that fill a slot, their weights made to have sum 1."""
    if bool((shares < 0).any()):
        raise VPromptError(
            "Prompts of different lengths are averaged over those that have a token, which needs "
            "weights of at least 0. Use another solver than leave_one_out_sgd."
        )
    shares = shares * filled
    kept = shares.sum(0) > 1e-12
    shares = shares[:, kept] / shares[:, kept].sum(0)
    tokens = _sum(stacked.nan_to_num()[:, kept], shares, scale)
    return Prompt(tokens, first.blocks[kept], first.persist)


def _restore_norm(mixed: PromptTokens, stacked: Tensor, shares: Tensor) -> PromptTokens:
    norms = mixed.norm(dim=1)
    wanted = torch.einsum("sc,sc->c", _sizes(shares), stacked.norm(dim=2))
    # Where sources cancel there is no direction to rescale: keep the heaviest source's token.
    fallback = _heaviest(stacked, shares)
    scaled = mixed * (wanted / norms.clamp_min(1e-12))[:, None]
    return torch.where((norms < 1e-12)[:, None], fallback, scaled)


def _standardised_sum(stacked: Tensor, shares: Tensor) -> PromptTokens:
    centred = stacked - stacked.mean(2, keepdim=True)
    spread = centred.square().mean(2, keepdim=True).sqrt()
    mixed = torch.einsum("sc,sct->ct", shares, centred / spread.clamp_min(1e-12))
    wanted = torch.einsum("sc,sck->ck", _sizes(shares), spread)
    own = mixed.square().mean(1, keepdim=True).sqrt()
    fallback = _heaviest(stacked, shares)
    return torch.where(own < 1e-12, fallback, mixed * (wanted / own.clamp_min(1e-12)))


def _sizes(shares: Tensor) -> Tensor:
    """Return how much each source counts for a length; a negative share must not turn the sum."""
    return shares.abs() / shares.abs().sum(0)


def _heaviest(stacked: Tensor, shares: Tensor) -> PromptTokens:
    """Return every token as the source with the largest share has it."""
    return stacked[shares.argmax(0), torch.arange(stacked.shape[1], device=stacked.device)]


def _check_layers(weights: LayerWeights, prompt: Prompt) -> None:
    if len(prompt.blocks) and int(prompt.blocks[-1]) >= len(weights):
        raise VPromptError(
            f"There are weights for {len(weights)} layers, but the prompts have tokens in block "
            f"{int(prompt.blocks[-1])}. Give one row for every block of the backbone."
        )


def _describe(prompt: Prompt) -> str:
    blocks, counts = prompt.blocks.unique(return_counts=True)
    pairs = ", ".join(f"{b}: {c}" for b, c in zip(blocks.tolist(), counts.tolist(), strict=True))
    after = "travel on" if prompt.persist else "are dropped"
    return f"{len(prompt.tokens)} tokens of width {prompt.dim} that {after} ({{{pairs}}} by block)"
