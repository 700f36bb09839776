"""What timm's blocks do, spelled out: a prompt is keys and values alone, and stands at no place.

A rotation turns the queries and keys of patches by where they lie in the image. Class and register
tokens lie nowhere and are not turned, and neither are prompt tokens.
"""

from typing import Any

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from vprompt.core.precision import steady, steady_linear
from vprompt.core.types import PromptRows, ReadTokens, Tokens
from vprompt.models.attention import Attend, KeyValue, joint, keys_and_values, project

_ATTENTIONS: dict[type, tuple[type, ...]] = {
    vision_transformer.Block: (Attention,),
    eva.EvaBlock: (eva.EvaAttention, AttentionRope),
}


def is_plain(block: Any) -> bool:
    """Say whether a block is one of those that `prompted` spells out."""
    return type(getattr(block, "attn", None)) in _ATTENTIONS.get(type(block), ())


def prompted(
    block: Any,
    tokens: Tokens,
    prompt: PromptRows,
    attend: Attend | None,
    *,
    reads: int | None,
    rotation: Tensor | None,
    prefix: int,
) -> ReadTokens:
    """Run a plain block as `Backbone.prompted_block` says: the prompt is keys and values alone.

    Norm, layer scale, gate, query and key norms are the block's own. `rotation` turns the tokens
    behind the first `prefix`.
    """
    attention = block.attn
    normed = block.norm1(tokens)
    query, own = _project(attention, normed, reads)
    inside = _keys_and_values(attention, block.norm1(prompt))
    half = getattr(attention, "rotate_half", False)
    query = _turn(attention.q_norm(query), rotation, prefix, half)
    key = _turn(attention.k_norm(own.key), rotation, prefix, half)
    own = KeyValue(_each_head(attention, key), _each_head(attention, own.value))
    key = _each_head(attention, attention.k_norm(inside.key))
    inside = KeyValue(key, _each_head(attention, inside.value))
    attend = attend or joint(fused=attention.fused_attn)
    mixed = attend(query, own, inside, attention.scale, None)
    mixed, count = attention.norm(mixed.transpose(1, 2).flatten(2)), tokens.shape[0]
    gate = getattr(attention, "gate", None)  # which older releases of timm do not know
    if gate is not None:
        mixed = mixed * gate(normed[:, :reads]).sigmoid()
    if reads is not None:
        tokens, mixed = steady(tokens[:, :reads]), steady(mixed)
    tokens = tokens + _scaled(block, 1, attention.proj(mixed))
    return (tokens + _scaled(block, 2, block.mlp(block.norm2(tokens))))[:count]


def last_of(block: Any) -> nn.Module:
    """Return the module whose output a plain block adds to its residual last."""
    return block.drop_path2 if isinstance(block, eva.EvaBlock) else block.ls2


def stretched(rotation: Tensor, count: int) -> Tensor:
    """Return a rotation with `count` rows more in front, which turn nothing: sine 0, cosine 1."""
    if not count:
        return rotation
    still = torch.zeros_like(rotation[..., :1, :])
    still[..., still.shape[-1] // 2 :] = 1
    return torch.cat([still.expand(*still.shape[:-2], count, -1), rotation], dim=-2)


def _turn(rows: Tensor, rotation: Tensor | None, prefix: int, half: bool) -> Tensor:
    """Rotate the rows `[batch, heads, count, head_dim]` behind the prefix, if there are any."""
    behind = rows.shape[2] - prefix
    if rotation is None or behind <= 0:
        return rows
    turned = apply_rot_embed_cat(rows[:, :, prefix:], rotation[..., :behind, :], half=half)
    return torch.cat([rows[:, :, :prefix], turned.type_as(rows)], dim=2) if prefix else turned


def _each_head(attention: Any, rows: Tensor) -> Tensor:
    """Hand every head keys or values of its own, where several share them."""
    groups = getattr(attention, "num_kv_groups", 1)
    return rows if groups == 1 else rows.repeat_interleave(groups, dim=1)


def _scaled(block: Any, number: int, tokens: Tensor) -> Tensor:
    """Apply the layer scale of attention (1) or MLP (2), which one family keeps as a parameter."""
    if not isinstance(block, eva.EvaBlock):
        return getattr(block, f"ls{number}")(tokens)
    gamma = getattr(block, f"gamma_{number}")
    path = getattr(block, f"drop_path{number}")
    return path(tokens if gamma is None else gamma * tokens)


def _project(attention: Any, rows: Tokens, reads: int | None) -> tuple[Tensor, KeyValue]:
    if attention.qkv is not None:
        return project(rows, *_joined(attention), reads)
    query = _apart(attention.q_proj, rows[:, :reads], attention.head_dim)
    return query, _keys_and_values(attention, rows)


def _keys_and_values(attention: Any, rows: Tensor) -> KeyValue:
    if attention.qkv is not None:
        return keys_and_values(rows, *_joined(attention))
    size = attention.head_dim
    return KeyValue(_apart(attention.k_proj, rows, size), _apart(attention.v_proj, rows, size))


def _joined(attention: Any) -> tuple[Tensor, Tensor | None, int]:
    """Return weight and bias of queries, keys and values in one, and the number of heads."""
    layer, bias = attention.qkv, attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return layer.weight, bias, attention.num_heads


def _apart(layer: nn.Linear, rows: Tensor, size: int) -> Tensor:
    """Project to `[batch, heads, count, size]`."""
    return steady_linear(rows, layer.weight, layer.bias).unflatten(-1, (-1, size)).transpose(1, 2)
