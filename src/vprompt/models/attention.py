"""Attention: how the queries of a block look at its own keys and at those of a prompt.

A prompt whose outputs are dropped is keys and values only. The block computes them, and a function
of this file decides what the queries make of both sets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.precision import has_amx, steady_linear
from vprompt.core.types import Present, PromptRows, Tokens, Which

_WORLDS = 60.0  # between two logits: the smaller then counts as nothing, in float64 too


@dataclass(frozen=True, eq=False)
class KeyValue:
    """Keys and values `[batch or 1, heads, count, head_dim]`; 1 where all images share them."""

    key: Tensor
    value: Tensor


def project(
    rows: Tokens | PromptRows, weight: Tensor, bias: Tensor | None, heads: int, reads: int | None
) -> tuple[Tensor, KeyValue]:
    """Return queries of the first `reads` rows (None: of all), and keys and values of all.

    `weight` `[3 * width, dim]` and `bias` are the joint projection of a block, queries first.
    """
    if reads is None:
        both = functional.linear(rows, weight, bias)
        query, key, value = both.unflatten(-1, (3, heads, -1)).transpose(1, 3).unbind(2)
        return query, KeyValue(key, value)
    width = len(weight) // 3
    query = steady_linear(rows[:, :reads], weight[:width], None if bias is None else bias[:width])
    query = query.unflatten(-1, (heads, -1)).transpose(1, 2)
    return query, keys_and_values(rows, weight, bias, heads)


def keys_and_values(
    rows: Tokens | PromptRows, weight: Tensor, bias: Tensor | None, heads: int
) -> KeyValue:
    """Return keys and values of rows that ask nothing; arguments as for `project`."""
    width = len(weight) // 3
    both = steady_linear(rows, weight[width:], None if bias is None else bias[width:])
    key, value = both.unflatten(-1, (2, heads, -1)).transpose(1, 3).unbind(2)
    return KeyValue(key, value)


# From queries `[batch, heads, sequence, head_dim]`, a block's own keys, the prompt's, the scale of
# the logits and an additive mask on the block's own keys (or None) to the heads' outputs, of the
# queries' shape.
Attend = Callable[[Tensor, KeyValue, KeyValue, float, Tensor | None], Tensor]


SHORT_SEQUENCE = 128  # tokens
_MAPS_FIT = 320  # tokens; 224 px in patches of 14 are 257, registers not counted


def joint(*, fused: bool | None = None) -> Attend:
    """Return plain attention over both sets of keys.

    `fused` leaves it to torch's kernel. On a CPU the backward pass of that kernel is slow for short
    sequences, so None takes it for more than `SHORT_SEQUENCE` queries alone.
    """

    def attend(
        query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
    ) -> Tensor:
        padded = None if mask is None else functional.pad(mask, (prompt.key.shape[2], 0))
        return _look(query, own, prompt, scale, padded, fused)

    return attend


def assigned(which: Which, present: Present, *, fused: bool | None = None) -> Attend:
    """Return attention in which image i sees the keys of prompt `which[i]` that are `present`.

    The prompts' keys `[prompts, heads, count, head_dim]` are projected once each, however many
    images share them. `present` `[prompts, count]` is False where a shorter prompt was filled up.
    """
    hidden = None if bool(present.all()) else hide(present, torch.float32)[which]

    def attend(
        query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
    ) -> Tensor:
        # On a CPU its backward pass adds up the images of a prompt in their order, whoever else is
        # there, and faster than that of an index.
        whose = which.to(query.device)
        mine = KeyValue(prompt.key.index_select(0, whose), prompt.value.index_select(0, whose))
        bias = None if mask is None else functional.pad(mask, (prompt.key.shape[2], 0))
        if hidden is not None:
            absent = functional.pad(hidden, (0, own.key.shape[2])).to(query)
            bias = absent if bias is None else bias + absent
        return _look(query, own, mine, scale, bias, fused)

    return attend


def hide(present: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `[..., 1, 1, count]`, what is added to logits: 0 where a key is present, else -inf."""
    bias = torch.zeros(present.shape, dtype=dtype, device=present.device)
    return bias.masked_fill(~present, -torch.inf)[..., None, None, :]


def gated(gates: Tensor, *, exact: bool = False) -> Attend:
    """Return attention in which the weight of prompt key k is multiplied by `gates[..., k]`.

    The factor stands on exp(logit), before normalisation: 1 is the plain key, 0 is its exact
    removal, and the slope at either end is the first-order effect of removing or inserting it.
    `gates` is `[count]`, or `[batch, count]` for gates per image. Softmax statistics are in fp32.

    With `exact`, for gates of 0 and 1, the slope at a gate is (up to its sign) the whole change of
    the heads' outputs when that gate is turned over, not the slope of that change: the weight A of
    a key becomes A / (1 - A) where the key is present and A / (1 + A) where it is not. Outputs and
    all other gradients stay as they are.
    """
    factors = gates if gates.dim() == 1 else gates[:, None, None]

    def attend(
        query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
    ) -> Tensor:
        left = logits(query, prompt.key, scale)
        right = logits(query, own.key, scale, mask)
        # The highest of what is there: a key behind a closed gate must not press all others to 0.
        peak = torch.maximum(_peak(left.masked_fill(factors == 0, -torch.inf)), _peak(right))
        left, right = (left - peak).clamp_max(_WORLDS).exp(), (right - peak).exp()
        weight = factors
        if exact:
            weight = _turned_over(left.detach(), right.detach(), factors)
        left = left * weight
        total = left.sum(-1, keepdim=True) + right.sum(-1, keepdim=True)
        dtype = own.value.dtype
        mixed = (left / total).to(dtype) @ prompt.value.to(dtype)
        return mixed + (right / total).to(dtype) @ own.value

    return attend


def _turned_over(left: Tensor, right: Tensor, factors: Tensor) -> Tensor:
    """Return the factors, with slopes stretched to the change when each is turned over alone."""
    here = factors.detach()
    total = (left * here).sum(-1, keepdim=True) + right.sum(-1, keepdim=True)
    # A key that has all the weight leaves a rest of 0: its slope is cut off at what fp32 resolves.
    rest = (total + (1 - 2 * here) * left).clamp_min(torch.finfo(total.dtype).eps * total)
    return here + (factors - here) * (total / rest)


def mixture(weights: Tensor, sizes: Sequence[int]) -> Attend:
    """Return the weighted sum of attentions, one for every candidate set of prompt keys.

    The prompt's keys are the candidates' side by side, `sizes` of them each; a candidate of size 0
    is plain attention. `weights` `[candidates]` are non-negative with sum 1. All candidates share
    the block's own logits, so the exact sum costs about one attention: each has the block's part
    and its own, over the sum of both normalisers. Softmax statistics are in fp32 at least.

    Reference: Huang et al., "Differentiable Prompt Learning for Vision Language Models", IJCAI
    2025, arXiv 2501.00457, for the sum.
    """
    if len(weights) != len(sizes):
        raise VPromptError(
            f"A mixture needs one weight per candidate, but got {len(weights)} weights and "
            f"{len(sizes)} sizes."
        )

    def attend(
        query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
    ) -> Tensor:
        right = logits(query, own.key, scale, mask)
        peak = _peak(right)
        right = (right - peak).exp()
        total = right.sum(-1, keepdim=True)
        # A candidate of terms E has (right @ V + E @ its V) / (total + sum of E), so that all share
        # one `right @ V`, times the sum of the candidates' factors.
        parts, factor = [], torch.zeros_like(total)
        candidates = logits(query, prompt.key, scale).split(list(sizes), dim=-1)
        for weight, scores in zip(weights.to(right.dtype), candidates, strict=True):
            if not scores.shape[-1]:
                factor = factor + weight / total
                continue
            summit = _peak(scores)
            ahead = (summit - peak).clamp(-_WORLDS, _WORLDS).exp()
            left = (scores - summit).exp()
            share = weight / (total + ahead * left.sum(-1, keepdim=True))
            factor = factor + share
            parts.append(left * (share * ahead))
        dtype = own.value.dtype
        mixed = ((right.to(dtype) @ own.value) * factor).to(dtype)
        if not parts:
            return mixed
        return mixed + torch.cat(parts, dim=-1).to(dtype) @ prompt.value.to(dtype)

    return attend


def survival(weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return for every key of a nested bank the weight of the candidates that reach it.

    A candidate of size n takes the first n keys. The gates `[largest size]` sum to the expected
    size; given to `gated` they are a relaxation of their own, exact where one weight is 1.
    """
    reach = torch.tensor(list(sizes), device=weights.device)
    position = torch.arange(max(sizes), device=weights.device)
    return ((reach[:, None] > position) * weights[:, None]).sum(0)


def logits(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Return `[batch, heads, sequence, count]`, at least in fp32."""
    scores = ((query * scale) @ key.transpose(-2, -1)).to(
        torch.promote_types(key.dtype, torch.float32)
    )
    return scores if mask is None else scores + mask


def _look(
    query: Tensor,
    own: KeyValue,
    prompt: KeyValue,
    scale: float,
    bias: Tensor | None,
    fused: bool | None,
) -> Tensor:
    """Attend to the prompt's keys and a block's own; `bias` is added to the logits of both."""
    fused = query.shape[2] > SHORT_SEQUENCE if fused is None else fused
    key, value = _both(prompt.key, own.key), _both(prompt.value, own.value)
    if fused and not _faster_written_out(query):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=scale
        )
    scores = (query * scale) @ key.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


def _faster_written_out(query: Tensor) -> bool:
    """Say whether torch's fused kernel is slower than two matrix products.

    It is in bf16 on processors that multiply bf16 without AMX, backward above all. On long
    sequences the maps of all blocks would need too much memory.
    """
    written_out = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    return written_out and query.shape[2] <= _MAPS_FIT and not has_amx()


def _peak(scores: Tensor) -> Tensor:
    if not scores.shape[-1]:
        return scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    return scores.detach().amax(-1, keepdim=True)


def _both(prompt: Tensor, own: Tensor) -> Tensor:
    return torch.cat([prompt.expand(own.shape[0], -1, -1, -1).to(own.dtype), own], dim=2)
