"""Which models of open_clip can be prompted in both towers, and why the others cannot."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.data.preprocessing import ImageSize, check_filled, pair, sides

_ENDS = ("argmax", "eos")  # how a text tower is pooled where its text ends


_WITHOUT_START = re.compile(r"\b(m?t5|siglip)", re.IGNORECASE)  # whose texts begin with a word


def check_config(
    config: Mapping[str, Any] | None, name: str, image_size: ImageSize | None = None
) -> None:
    """Refuse before anything is downloaded what a look at the config tells."""
    if config is None:
        return  # open_clip says so itself, with the names it knows
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    reason = _image_reason(vision) or _text_reason(text)
    if "multimodal_cfg" in config:
        reason = "it has a decoder that sees images and writes texts (CoCa)"
    if reason:
        raise VPromptError(refusal(name, reason))
    own = vision.get("image_size", 224)
    if image_size is not None and sides(image_size) != sides(_as_size(own)):
        check_filled(sides(image_size), pair(_as_size(vision.get("patch_size", 16))), name)


def _image_reason(vision: Mapping[str, Any]) -> str:
    """Return why an image tower cannot be prompted, as far as its config tells."""
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is a ResNet"
    if vision.get("timm_model_name"):
        return f"its image tower is timm's {vision['timm_model_name']}"
    return "the blocks of its image tower are of another kind" if _other_blocks(vision) else ""


def _text_reason(text: Mapping[str, Any]) -> str:
    """Return why a text tower cannot be prompted, as far as its config tells."""
    if text.get("hf_model_name"):
        return f"its text tower is {text['hf_model_name']}"
    if text.get("no_causal_mask"):
        return "its text tower is not causal: words see those behind them"
    if text.get("embed_cls"):
        return "its text tower ends in a class token"
    if text.get("pool_type", "argmax") not in _ENDS:
        return "its text tower does not read the end token"
    if _other_blocks(text):
        return "the blocks of its text tower are of another kind"
    tokenizer = str(text.get("hf_tokenizer_name") or "")
    return _no_start(tokenizer) if _WITHOUT_START.search(tokenizer) else ""


def _other_blocks(tower: Mapping[str, Any]) -> bool:
    """Say whether a config asks for blocks with more in them than the plain ones have."""
    if tower.get("block_type") not in (None, "default"):
        return True
    parts = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn")
    return any(tower.get(part) for part in (*parts, "scale_fc"))


def _as_size(value: Any) -> ImageSize:
    return value if isinstance(value, int) else (int(value[0]), int(value[1]))


def _no_start(tokenizer: str) -> str:
    return f"its tokeniser{f' {tokenizer}' * bool(tokenizer)} puts no start token before a text"


def check_tokenizer(tokenizer: Callable[..., Tensor], name: str) -> None:
    """Refuse a tokeniser whose texts do not begin with one token that is the same for all.

    Prompts stand behind it, and without it they would stand behind the first word.
    """
    texts = ["a", "photo", "zebra crossing", "of"]
    starts = tokenizer(texts, context_length=16)[:, 0]
    if len(starts.unique()) > 1:
        raise VPromptError(refusal(name, _no_start("")))


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
    if pooling(text)[0] not in _ENDS:
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
