"""Which models of open_clip can be prompted in both towers, and why the others cannot."""

from collections.abc import Mapping
from typing import Any

from vprompt.backbones._timm_models import check_supported as check_timm
from vprompt.backbones._timm_models import patch_size_of, sketched
from vprompt.core.errors import VPromptError
from vprompt.data.preprocessing import ImageSize, check_filled, pair, sides

_POOLINGS = ("argmax", "eos", "first", "last")  # of one token, so that all others may be prompts


def check_config(
    config: Mapping[str, Any] | None, name: str, image_size: ImageSize | None = None
) -> None:
    """Refuse before anything is downloaded what a look at the config tells."""
    if config is None:
        return  # open_clip says so itself, with the names it knows
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    reason = _image_reason(vision) or _text_reason(text)
    if reason:
        raise VPromptError(refusal(name, reason))
    own = vision.get("image_size", 224)
    if image_size is not None and sides(image_size) != sides(_as_size(own)):
        trunk = vision.get("timm_model_name")
        patch = (
            patch_size_of(sketched(trunk))
            if trunk
            else pair(_as_size(vision.get("patch_size", 16)))
        )
        check_filled(sides(image_size), patch, name)


def _image_reason(vision: Mapping[str, Any]) -> str:
    """Return why an image tower cannot be prompted, as far as its config tells."""
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is a ResNet"
    if vision.get("timm_model_name"):
        return _timm_reason(str(vision["timm_model_name"]), str(vision.get("timm_pool", "avg")))
    return "the blocks of its image tower are of another kind" if _other_blocks(vision) else ""


def _text_reason(text: Mapping[str, Any]) -> str:
    """Return why a text tower cannot be prompted, as far as its config tells."""
    if text.get("hf_model_name"):
        return f"its text tower is {text['hf_model_name']}"
    if text.get("pool_type", "argmax") not in _POOLINGS:
        return "its text tower does not read one token"
    return "the blocks of its text tower are of another kind" if _other_blocks(text) else ""


def _timm_reason(model: str, pool: str) -> str:
    """Return why timm's image tower cannot be prompted, or nothing; it is made without memory."""
    if pool in ("abs_attn", "rot_attn"):
        return f"its image tower is timm's {model}, pooled over a grid"
    try:
        sketched(model)
    except VPromptError:
        return f"its image tower is timm's {model}, which is no plain vision transformer"
    return ""


def _other_blocks(tower: Mapping[str, Any]) -> bool:
    """Say whether a config asks for blocks with more in them than the plain ones have."""
    if tower.get("block_type") not in (None, "default"):
        return True
    parts = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn")
    return any(tower.get(part) for part in (*parts, "scale_fc"))


def _as_size(value: Any) -> ImageSize:
    return value if isinstance(value, int) else (int(value[0]), int(value[1]))


def check_activation(
    config: Mapping[str, Any] | None, weights: Mapping[str, Any], name: str
) -> None:
    """Refuse weights that were trained with exact GELU under a config of QuickGELU.

    The other way round the tag says so, and the model is made with QuickGELU.
    """
    if weights and (config or {}).get("quick_gelu") and not weights.get("quick_gelu"):
        architecture, _, tag = name.partition(",")
        raise VPromptError(
            f"The weights of {name!r} were trained with exact GELU, and this config gives them "
            f"QuickGELU, under which their features are others. Use "
            f"'{architecture.removesuffix('-quickgelu')},{tag}'."
        )


def check_supported(clip: Any, name: str) -> None:
    """Raise VPromptError unless both towers are plain transformers, the text tower causal."""
    if type(clip).__name__ not in ("CLIP", "CustomTextCLIP", "CoCa"):
        raise VPromptError(refusal(name, f"it is a {type(clip).__name__}"))
    timm_tower = type(clip.visual).__name__ == "TimmModel"
    if timm_tower:
        check_timm(clip.visual.trunk, name)
    elif type(clip.visual).__name__ != "VisionTransformer":
        raise VPromptError(refusal(name, f"its image tower is a {type(clip.visual).__name__}"))
    text = getattr(clip, "text", clip)
    if not hasattr(text, "transformer") or not hasattr(text, "token_embedding"):
        raise VPromptError(refusal(name, f"its text tower is a {type(text).__name__}"))
    for tower, part in (("image", clip.visual), ("text", text)):
        if tower == "image" and timm_tower:
            continue
        plain = {"ResidualAttentionBlock"} == {
            type(block).__name__ for block in part.transformer.resblocks
        }
        if not plain or not part.transformer.batch_first:
            raise VPromptError(
                refusal(name, f"the blocks of its {tower} tower are of another kind")
            )
    if pooling(text)[0] not in _POOLINGS and getattr(text, "cls_emb", None) is None:
        raise VPromptError(refusal(name, "its text tower does not read one token"))


def refusal(name: str, reason: str) -> str:
    """Return the sentence that says why a model is not taken, and which would be."""
    return (
        f"{name!r} cannot be prompted in both towers: {reason}. Use a CLIP of two plain "
        "transformers, such as 'ViT-B-16,openai'; an image tower alone may load through timm."
    )


def pooling(text: Any) -> tuple[str, int]:
    """Return how a text tower pools, and the end token it looks for where that is `eos`."""
    own = "" if hasattr(text, "pool_type") else "text_"  # a tower of its own, or the model
    return getattr(text, f"{own}pool_type"), int(getattr(text, f"{own}eos_id"))
