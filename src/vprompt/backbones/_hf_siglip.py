"""A SigLIP of transformers as one of open_clip: the text tower's config, and where weights go."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vprompt.backbones import _hf_clip, _hf_models
from vprompt.core.errors import VPromptError

_SMALL = "test_vit"  # timm's smallest, which the image tower takes the place of


def open_clip_config(config: Any, model: str) -> dict[str, Any]:
    """Return open_clip's config of the same text tower, or refuse what it has no place for."""
    vision, text = config.vision_config, config.text_config
    if text.hidden_act not in _hf_clip.GELUS:
        raise VPromptError(
            f"The text tower of {model!r} has the nonlinearity {text.hidden_act!r}; read are "
            f"{', '.join(_hf_clip.GELUS)}."
        )
    if text.projection_size != vision.hidden_size:
        raise VPromptError(
            f"The towers of {model!r} have features of {vision.hidden_size} and "
            f"{text.projection_size} numbers, which cannot be compared. Save a model whose "
            "`projection_size` is the width of its image tower."
        )
    return {
        "embed_dim": text.projection_size,
        "custom_text": True,
        "init_logit_bias": 0.0,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": _SMALL,
            "timm_pool": "token",
            "timm_proj": "none",
        },
        "text_cfg": {
            **_hf_clip.tower(text),
            "heads": text.num_attention_heads,
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
        },
    }


def open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that are not the image tower's under open_clip's names."""
    own = {key: value for key, value in state.items() if key.startswith("text_model.")}
    found = {f"text.{key}": value for key, value in _hf_clip.renamed(own).items()}
    for kind in ("weight", "bias"):
        found[f"text.text_projection.{kind}"] = found.pop(f"text.head.{kind}")
    for key in ("logit_scale", "logit_bias"):
        found[key] = state[key].detach().reshape(())
    return found


def image_tower(original: Any, model: str) -> nn.Module:
    """Return the image tower as a model of timm, with its weights."""
    kind, config = _hf_models.KINDS["siglip_vision_model"], original.config.vision_config
    if config.num_channels != 3:
        raise VPromptError(f"{model!r} sees {config.num_channels} channels; images here have 3.")
    vit: Any = kind.make(config).eval()
    vit.load_state_dict(_hf_models.timm_state(kind, original.vision_model.state_dict(), config))
    return vit
