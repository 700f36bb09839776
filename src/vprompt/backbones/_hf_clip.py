"""A CLIP of transformers as one of open_clip: the config, and where each weight goes."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError

GELUS: dict[str, dict[str, str] | None] = {
    "quick_gelu": None,
    "gelu": None,
    "gelu_pytorch_tanh": {"approximate": "tanh"},
    "gelu_new": {"approximate": "tanh"},
}
_EPS = 1e-5  # of open_clip's norms
_NAMES = (
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm([12])\.", r"ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"embeddings\.patch_embedding\.", "conv1."),
    (r"embeddings\.class_embedding$", "class_embedding"),
    (r"embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"pre_layrnorm\.", "ln_pre."),
    (r"post_layernorm\.", "ln_post."),
    (r"final_layer_norm\.", "ln_final."),
)


def open_clip_config(config: Any, model: str) -> dict[str, Any]:
    """Return open_clip's config of the same towers, or refuse what it has no place for."""
    vision, text = config.vision_config, config.text_config
    quick = {tower.hidden_act == "quick_gelu" for tower in (vision, text)}
    for one in (vision, text):
        if one.hidden_act not in GELUS or len(quick) > 1:
            raise VPromptError(
                f"The towers of {model!r} have the nonlinearities {vision.hidden_act!r} and "
                f"{text.hidden_act!r}; read are {', '.join(GELUS)}, QuickGELU in both or neither."
            )
    if vision.num_channels != 3:
        raise VPromptError(f"{model!r} sees {vision.num_channels} channels; images here have 3.")
    end = text.eos_token_id
    pooled: dict[str, Any] = {"pool_type": "argmax"}
    if end != 2:  # transformers reads the largest number where a config has this old mistake
        pooled = {"pool_type": "eos", "eos_id": int(end)}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": quick == {True},
        "vision_cfg": {
            **tower(vision),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": {
            **tower(text),
            **pooled,
            "heads": text.num_attention_heads,
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
        },
    }


def tower(config: Any) -> dict[str, Any]:
    """Return what both towers of open_clip are made from alike."""
    found = {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }
    if GELUS[config.hidden_act]:
        found["act_kwargs"] = GELUS[config.hidden_act]
    if config.layer_norm_eps != _EPS:
        found["norm_kwargs"] = {"eps": config.layer_norm_eps}
    return found


def open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under open_clip's names."""
    found = renamed(state)
    found["visual.proj"] = found.pop("visual_projection.weight").T.contiguous()
    found["text_projection"] = found.pop("text_projection.weight").T.contiguous()
    return found


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the towers' weights under open_clip's names; queries, keys and values in one."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        for pattern, there in _NAMES:
            key = re.sub(pattern, there, key)
        found[key] = value.detach()
    for key in list(found):
        part = re.fullmatch(r"(.*\.attn\.)q_proj\.(weight|bias)", key)
        if part:
            names = [f"{part[1]}{letter}_proj.{part[2]}" for letter in "qkv"]
            found[f"{part[1]}in_proj_{part[2]}"] = torch.cat([found.pop(name) for name in names])
    return found
