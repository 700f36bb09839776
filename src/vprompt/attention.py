"""Attention: how the queries of a block look at its own keys and at those of a prompt.

A prompt whose outputs are dropped is keys and values only. The block computes them, and a function
of this file decides what the queries make of both sets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class KeyValue:
    """Keys and values `[batch or 1, heads, count, head_dim]`; 1 where all images share them."""

    key: Tensor
    value: Tensor


# From queries `[batch, heads, sequence, head_dim]`, a block's own keys, the prompt's, the scale of
# the logits and an additive mask on the block's own keys (or None) to the heads' outputs, of the
# queries' shape.
Attend = Callable[[Tensor, KeyValue, KeyValue, float, Tensor | None], Tensor]


def joint(*, fused: bool) -> Attend:
    """Return plain attention over both sets of keys.

    `fused` leaves it to torch's kernel. On a CPU the backward pass of that kernel is slow for
    short sequences, so backbones ask for the written-out form there.
    """

    def attend(
        query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
    ) -> Tensor:
        key, value = _both(prompt.key, own.key), _both(prompt.value, own.value)
        padded = None if mask is None else functional.pad(mask, (prompt.key.shape[2], 0))
        if fused:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask=padded, scale=scale
            )
        scores = (query * scale) @ key.transpose(-2, -1)
        return (scores if padded is None else scores + padded).softmax(-1) @ value

    return attend


def gated(gates: Tensor) -> Attend:
    """Return attention in which the weight of prompt key k is multiplied by `gates[..., k]`.

    The factor stands on exp(logit), before normalisation: 1 is the plain key, 0 is its exact
    removal, and the slope at either end is the first-order effect of removing or inserting it.
    `gates` is `[count]`, or `[batch, count]` for gates per image. Softmax statistics are in fp32.
    """
    factors = gates if gates.dim() == 1 else gates[:, None, None]

    def attend(
        query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
    ) -> Tensor:
        left = logits(query, prompt.key, scale)
        right = logits(query, own.key, scale, mask)
        peak = torch.maximum(_peak(left), _peak(right))
        left, right = (left - peak).exp() * factors, (right - peak).exp()
        total = left.sum(-1, keepdim=True) + right.sum(-1, keepdim=True)
        dtype = own.value.dtype
        mixed = (left / total).to(dtype) @ prompt.value.to(dtype)
        return mixed + (right / total).to(dtype) @ own.value

    return attend


def logits(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Return `[batch, heads, sequence, count]`, at least in fp32."""
    scores = ((query * scale) @ key.transpose(-2, -1)).to(
        torch.promote_types(key.dtype, torch.float32)
    )
    return scores if mask is None else scores + mask


def _peak(scores: Tensor) -> Tensor:
    if not scores.shape[-1]:
        return scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    return scores.detach().amax(-1, keepdim=True)


def _both(prompt: Tensor, own: Tensor) -> Tensor:
    return torch.cat([prompt.expand(len(own), -1, -1, -1).to(own.dtype), own], dim=2)
