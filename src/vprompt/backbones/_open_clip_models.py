"""Which models of open_clip can be prompted in both towers, and why the others cannot."""

from collections.abc import Mapping
from typing import Any

from vprompt.errors import VPromptError


def check_config(config: Mapping[str, Any] | None, name: str) -> None:
    """Refuse before anything is downloaded what a look at the config tells."""
    if config is None:
        return  # open_clip says so itself, with the names it knows
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if isinstance(vision.get("layers"), list | tuple):
        raise VPromptError(refusal(name, "its image tower is a ResNet"))
    if vision.get("timm_model_name"):
        raise VPromptError(refusal(name, f"its image tower is timm's {vision['timm_model_name']}"))
    if text.get("hf_model_name"):
        raise VPromptError(refusal(name, f"its text tower is {text['hf_model_name']}"))


def check_supported(clip: Any, name: str) -> None:
    """Raise VPromptError unless both towers are plain transformers, the text tower causal."""
    if type(clip).__name__ not in ("CLIP", "CustomTextCLIP"):
        raise VPromptError(refusal(name, f"it is a {type(clip).__name__}"))
    if type(clip.visual).__name__ != "VisionTransformer":
        raise VPromptError(refusal(name, f"its image tower is a {type(clip.visual).__name__}"))
    text = getattr(clip, "text", clip)
    if not hasattr(text, "transformer") or not hasattr(text, "token_embedding"):
        raise VPromptError(refusal(name, f"its text tower is a {type(text).__name__}"))
    for tower, part in (("image", clip.visual), ("text", text)):
        plain = {"ResidualAttentionBlock"} == {
            type(block).__name__ for block in part.transformer.resblocks
        }
        if not plain or not part.transformer.batch_first:
            raise VPromptError(
                refusal(name, f"the blocks of its {tower} tower are of another kind")
            )
    if text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        raise VPromptError(refusal(name, "its text tower is not causal, or ends in a class token"))
    if pooling(text)[0] not in ("argmax", "eos"):
        raise VPromptError(refusal(name, "its text tower does not read the end token"))


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
