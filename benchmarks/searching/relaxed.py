"""Relaxed: the mixture of candidate lengths as an explicit sum, for timings beside the exact one.

Each function takes a search of `dpl` and returns it with its attention replaced; its features stay
the same, which `python -m benchmarks searching.lengths cost` checks before it times anything.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.adapters.dpl import LengthSearch
from vprompt.models.attention import Attend, KeyValue, joint


def shared(search: LengthSearch) -> LengthSearch:
    """One attention per candidate, from queries, keys and values that all of them share."""
    sizes = search.sizes

    def attend_with(weights: Tensor) -> Attend:
        def attend(
            query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
        ) -> Tensor:
            keys, values = prompt.key.split(sizes, 2), prompt.value.split(sizes, 2)
            parts = zip(weights, keys, values, strict=True)
            plain = joint(fused=False)
            return sum(w * plain(query, own, KeyValue(k, v), scale, mask) for w, k, v in parts)  # type: ignore[return-value]

        return attend

    search._attend = attend_with  # type: ignore[method-assign]
    return search


def whole(search: LengthSearch) -> LengthSearch:
    """As published: per candidate a whole attention layer, projections in and out included."""
    backbone: Any = search.backbone
    vit, sizes = backbone.vit, search.sizes

    def weigh(weights: Tensor) -> Any:
        return weights  # handed through `walk` to the block below

    def prompted_block(
        index: int, tokens: Tensor, prompt: Tensor, weights: Any = None, **_: Any
    ) -> Tensor:
        block = vit.blocks[index]
        parts = prompt.expand(len(tokens), -1, -1).to(tokens.dtype).split(sizes, 1)
        mixed = sum(w * _layer(block, tokens, p) for w, p in zip(weights, parts, strict=True))
        tokens = tokens + block.ls1(mixed)
        return tokens + block.ls2(block.mlp(block.norm2(tokens)))

    search._attend = weigh  # type: ignore[method-assign]
    search.backbone = copy.copy(backbone)
    search.backbone.prompted_block = prompted_block  # type: ignore[method-assign]
    return search


def _layer(block: Any, tokens: Tensor, prompt: Tensor) -> Tensor:
    """Return the attention layer's output: queries from tokens, keys and values from both."""
    attention, width = block.attn, tokens.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    heads = (attention.num_heads, attention.head_dim)
    both = block.norm1(torch.cat([tokens, prompt], 1))
    query = functional.linear(block.norm1(tokens), weight[:width], bias[:width])
    key, value = functional.linear(both, weight[width:], bias[width:]).chunk(2, -1)
    query, key, value = (part.unflatten(-1, heads).transpose(1, 2) for part in (query, key, value))
    query, key = attention.q_norm(query) * attention.scale, attention.k_norm(key)
    mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
    return attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2)))


PUBLISHED = "explicit sum, as published"
RELAXATIONS = {"explicit sum, shared projections": shared, PUBLISHED: whole}
