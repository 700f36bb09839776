"""Compose: one prompt from many, as the weighted sum of tokens that correspond.

Tokens carry no position, so a prompt means the same in any token order. Averaging is defined only
once tokens correspond: because they grew from one initialisation, or because they were matched.
"""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vprompt.errors import VPromptError
from vprompt.linalg import unit_rows
from vprompt.prompt import Prompt
from vprompt.types import LayerWeights, PromptTokens, Weights

ALIGNS = ("auto", "none", "hungarian")
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
                "them out with --exclude."
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
            _, chosen = linear_sum_assignment(-(reference[rows] @ unit[rows].T).numpy())
            order[rows] = rows[torch.as_tensor(chosen)]
        orders.append(order)
    return orders


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
