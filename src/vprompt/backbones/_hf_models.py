"""Models of transformers as models of timm: the architecture, and where each weight goes.

The names are those of a model in memory, which are the same whatever the file's names were.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vprompt.core.errors import VPromptError

_ACTIVATIONS: dict[str, Any] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": "quick_gelu",
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
_SHARED = (
    (r"^(encoder\.|model\.)?layers?\.", "blocks."),
    (r"(layernorm_before|layer_norm1)\.", "norm1."),
    (r"(layernorm_after|layer_norm2)\.", "norm2."),
    (r"\.(attention|self_attn)\.", ".attn."),
    (r"\.(o_proj|out_proj)\.", ".proj."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (
        r"^embeddings\.(patch_embeddings\.projection|patch_embeddings|patch_embedding)\.",
        "patch_embed.proj.",
    ),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
)
_UNUSED = re.compile(r"^(pooler\.|embeddings\.mask_token$|embeddings\.position_ids$)")


@dataclass(frozen=True)
class Kind:
    """One model of transformers: its class, timm's of the same shape, and what is done to names."""

    original: str
    make: Callable[[Any], nn.Module]
    finish: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]


def supported() -> tuple[str, ...]:
    """Return the kinds of models (`model_type` of a config) that are read."""
    return tuple(sorted(KINDS))


def timm_state(kind: Kind, state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Return the weights under timm's names; queries, keys and values in one."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if _UNUSED.match(key):
            continue
        for pattern, there in _SHARED:
            key = re.sub(pattern, there, key)
        found[key] = value.detach()
    return kind.finish(found, config)


def _sizes(config: Any) -> dict[str, Any]:
    """Return what all architectures are made from."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "num_classes": 0,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "norm_layer": partial(nn.LayerNorm, eps=config.layer_norm_eps),
    }


def activation(name: str) -> Any:
    """Return a nonlinearity by transformers' name of it."""
    if name not in _ACTIVATIONS:
        raise VPromptError(
            f"The model's nonlinearity is {name!r}; read are {', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[name]


def _plain(config: Any) -> nn.Module:
    return VisionTransformer(
        **_sizes(config),
        mlp_ratio=config.intermediate_size / config.hidden_size,
        qkv_bias=getattr(config, "qkv_bias", True),
        act_layer=activation(config.hidden_act),
    )


def _deit(config: Any) -> nn.Module:
    return VisionTransformerDistilled(
        **_sizes(config),
        mlp_ratio=config.intermediate_size / config.hidden_size,
        qkv_bias=config.qkv_bias,
        act_layer=activation(config.hidden_act),
    )


def _dinov2(config: Any) -> nn.Module:
    registers = getattr(config, "num_register_tokens", 0)
    more: dict[str, Any] = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    ratio = config.mlp_ratio
    if config.use_swiglu_ffn:
        width = (int(config.hidden_size * ratio * 2 / 3) + 7) // 8 * 8
        # Half a unit more, as the ratio is multiplied and cut off.
        ratio = (2 * width + 0.5) / config.hidden_size
        more |= {"mlp_layer": SwiGLUPacked}
    return VisionTransformer(
        **_sizes(config),
        **more,
        mlp_ratio=ratio,
        qkv_bias=config.qkv_bias,
        act_layer=nn.SiLU if config.use_swiglu_ffn else activation(config.hidden_act),
        init_values=1.0,
    )


def _dinov3(config: Any) -> nn.Module:
    if config.key_bias or config.query_bias != config.value_bias or not config.mlp_bias:
        raise VPromptError(
            "This DINOv3 has biases on other projections than the published ones, for which timm's "
            "architecture has no place."
        )
    wanted = "silu" if config.use_gated_mlp else "gelu"
    if config.hidden_act != wanted:
        raise VPromptError(
            f"This DINOv3 has the nonlinearity {config.hidden_act!r}, and timm's has {wanted!r}."
        )
    return Eva(
        **_sizes(config),
        global_pool="token",
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
        qkv_bias=config.query_bias,
        qkv_fused=True,
        swiglu_mlp=config.use_gated_mlp,
        swiglu_align_to=1 if config.use_gated_mlp else 0,
        init_values=1.0,
        num_reg_tokens=config.num_register_tokens,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=config.rope_theta,
        rope_rotate_half=True,
        use_fc_norm=False,
        dynamic_img_size=True,
    )


def _siglip(config: Any) -> nn.Module:
    if not getattr(config, "vision_use_head", True):
        raise VPromptError("This SigLIP tower has no pooling, so it has no features.")
    return VisionTransformer(
        **_sizes(config),
        mlp_ratio=config.intermediate_size / config.hidden_size,
        act_layer=activation(config.hidden_act),
        class_token=False,
        global_pool="map",
    )


def _joined(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Put queries, keys and values into one matrix, as timm has them."""
    del config
    found = dict(state)
    for key in state:
        part = re.fullmatch(r"(blocks\.\d+\.attn\.)q_proj\.(weight|bias)", key)
        if part:
            names = [f"{part[1]}{letter}_proj.{part[2]}" for letter in "qkv"]
            found[f"{part[1]}qkv.{part[2]}"] = torch.cat([found.pop(name) for name in names])
    return found


def _finish_dinov2(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    found = _joined(state, config)
    gated = re.compile(r"(blocks\.\d+\.mlp\.)gate_proj\.(weight|bias)")
    for part in filter(None, map(gated.fullmatch, list(found))):
        names = [f"{part[1]}{each}_proj.{part[2]}" for each in ("gate", "up")]
        found[f"{part[1]}fc1.{part[2]}"] = torch.cat([found.pop(name) for name in names])
        found[f"{part[1]}fc2.{part[2]}"] = found.pop(f"{part[1]}down_proj.{part[2]}")
    if "reg_token" in found:  # registers have no position, and the class token's is part of it
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return found


def _finish_dinov3(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    found = {}
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2", "mlp.down_proj": "mlp.fc2"}
    names |= {"mlp.gate_proj": "mlp.fc1_g"} if config.use_gated_mlp else {}
    names["mlp.up_proj"] = "mlp.fc1_x" if config.use_gated_mlp else "mlp.fc1"
    names |= {"q_proj.bias": "q_bias", "v_proj.bias": "v_bias"}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        found[key] = value
    found = _joined(found, config)
    if not config.num_register_tokens:
        found.pop("reg_token", None)
    return found


def _finish_siglip(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    found = _joined(state, config)
    found["pos_embed"] = found["pos_embed"][None]
    for kind in ("weight", "bias"):
        query, both = found.pop(f"head.attn.in_proj_{kind}").tensor_split([config.hidden_size])
        found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = query, both
    for key in [key for key in found if key.startswith("head.")]:
        there = key.replace("head.attn.proj", "attn_pool.proj")
        there = there.replace("head.layernorm", "attn_pool.norm").replace(
            "head.mlp", "attn_pool.mlp"
        )
        found[there.replace("head.probe", "attn_pool.latent")] = found.pop(key)
    return found


KINDS = {
    "vit": Kind("ViTModel", _plain, _joined),
    "deit": Kind("DeiTModel", _deit, _joined),
    "dinov2": Kind("Dinov2Model", _dinov2, _finish_dinov2),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", _dinov2, _finish_dinov2),
    "dinov3_vit": Kind("DINOv3ViTModel", _dinov3, _finish_dinov3),
    "siglip_vision_model": Kind("SiglipVisionModel", _siglip, _finish_siglip),
}
