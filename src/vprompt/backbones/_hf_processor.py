"""What a processor of transformers does to images, as our preprocessing."""

from collections.abc import Mapping, Sequence
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.data.preprocessing import DataConfig, ImageSize, pair, shown

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_HALF = (0.5, 0.5, 0.5)


def data_config_of(
    processor: Mapping[str, Any], own: ImageSize, model: str
) -> tuple[ImageSize, DataConfig, str]:
    """Return the image size, the preprocessing, and a remark on what it does.

    `own` is the size that the model's config names, for a processor that names none.
    """
    if not processor.get("do_resize", True):
        height, width = pair(own)
        mode, share = "squash", 1.0
    else:
        height, width, mode, share = _cut(processor, own, model)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    normal = processor.get("do_normalize", True)
    mean = _three(processor.get("image_mean") or _HALF) if normal else (0.0, 0.0, 0.0)
    std = _three(processor.get("image_std") or _HALF) if normal else (1.0, 1.0, 1.0)
    stretch = 1 / (255 * float(factor))  # ours are of pixels by 255
    kind = int(processor.get("resample", 3))
    config = DataConfig(
        input_size=(3, height, width),
        interpolation=_RESAMPLING.get(kind, str(kind)),
        mean=tuple(each * stretch for each in mean),  # type: ignore[arg-type]
        std=tuple(each * stretch for each in std),  # type: ignore[arg-type]
        crop_pct=share,
        crop_mode=mode,
    )
    way = {"squash": "both sides resized", "center": f"centre cut out at {share:.3g} of a side"}
    note = (
        f"images as its processor has them, where timm's name may have others: "
        f"{shown(height, width)} pixels, {way[mode]}, {config.interpolation}, mean "
        f"{_plain(config.mean)}, std {_plain(config.std)}"
    )
    return (height if height == width else (height, width)), config, note


def _cut(processor: Mapping[str, Any], own: ImageSize, model: str) -> tuple[int, int, str, float]:
    """Return height, width, how they are reached, and what share of a side the centre is."""
    size = processor.get("size", pair(own))
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        height, width = _sides(crop, model) if crop is not None else (edge, edge)
        return height, width, "center", min(height, width) / edge
    height, width = _sides(size, model)
    if crop is None:
        return height, width, "squash", 1.0
    cut = _sides(crop, model)
    if cut == (height, width):
        return height, width, "squash", 1.0
    raise VPromptError(
        f"The processor of {model!r} resizes both sides to {shown(height, width)} and then cuts "
        f"{shown(*cut)} out of that, which is not done here. Give `size` as a shortest edge."
    )


def _sides(size: Any, model: str) -> tuple[int, int]:
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, int):
        return size, size
    if isinstance(size, Sequence) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise VPromptError(
        f"The processor of {model!r} has the size {size!r}; read are a height and a width, or a "
        "shortest edge and a cut."
    )


def _three(values: Any) -> tuple[float, float, float]:
    listed = [float(each) for each in (values if isinstance(values, Sequence) else [values])]
    red, green, blue = listed * 3 if len(listed) == 1 else listed
    return red, green, blue


def _plain(values: tuple[float, ...]) -> str:
    return "/".join(f"{each:.4g}" for each in values)
