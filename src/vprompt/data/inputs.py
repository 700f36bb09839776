"""Inputs: an image as a person holds it in Python becomes RGB, and then what a backbone reads.

A file, a Pillow image, a NumPy array `[height, width, 3]` or a tensor `[3, height, width]`, alone
or many. Arrays and tensors hold whole numbers from 0 to 255 or floats from 0 to 1; anything else is
refused with a sentence, since a wrong range gives probabilities that look right.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Images
from vprompt.data.decoding import as_rgb, fit, read_rgb
from vprompt.data.preprocessing import DataConfig, Values

Given: TypeAlias = Path | str | Image.Image | NDArray[Any] | Tensor
_CHANNELS = (1, 3, 4)
_LAYOUTS = (
    "An image is a NumPy array [height, width, 3] or [height, width], or a tensor "
    "[3, height, width]; several are a list, or one more axis in front"
)
_SLACK = 1e-3  # what rounding may leave of a float beyond 0 and 1
_MARGIN = 0.25  # of the normalised range: what a resize of floats may overshoot
_OFF_GRID = 0.05  # in steps of 1/255


def each(images: Any) -> list[Given]:
    """Return single images of what a person gives: one, a list, or a batch in one array."""
    if isinstance(images, Path | str | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        _check_layout(images)
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Iterable) and not isinstance(images, Mapping):
        return [single for entry in images for single in each(entry)]
    raise VPromptError(
        f"An image is a path, a Pillow image, a NumPy array or a tensor, but got "
        f"{type(images).__name__}."
    )


def pixels(image: Given, config: DataConfig) -> NDArray[np.uint8]:
    """Return one image at the input size `[height, width, 3]`."""
    values = config.values or Values()
    if isinstance(image, Path | str):
        path = Path(image).expanduser()
        if not path.is_file():
            raise VPromptError(f"No image file at {path}.")
        try:
            return fit(read_rgb(path, values), config)
        except VPromptError:
            raise
        except Exception as error:  # broken files make Pillow raise almost anything
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise VPromptError(f"{path} cannot be read as an image: {first}.") from None
    return fit(as_rgb(_picture(image, values), values), config)


def normalise(pixels: Tensor, config: DataConfig) -> Images:
    """Turn `uint8 [batch, height, width, 3]` into a model's input; writes into nothing."""
    mean = torch.tensor(config.mean, device=pixels.device) * 255
    std = torch.tensor(config.std, device=pixels.device) * 255
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)


def check_normalised(images: Tensor, config: DataConfig) -> None:
    """Raise VPromptError where floats cannot be images that were normalised for this model.

    They lie within the range that normalising gives, with a margin. Images all from 0 to 1 are
    taken as not normalised, unless their values are just those that 256 levels have afterwards.
    """
    if not images.numel():
        return
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    if not np.isfinite((low, high)).all():
        raise VPromptError("The images hold values that are not finite.")
    mean, std = (torch.tensor(each)[:, None, None] for each in (config.mean, config.std))
    least, most = float((-mean / std).min()), float(((1 - mean) / std).max())
    margin = _MARGIN * (most - least)
    inside = least - margin <= low and high <= most + margin
    if inside and not (low >= 0 and high <= 1 and low < high):
        return
    if inside:
        levels = (images.detach().float().cpu() * std + mean) * 255
        if float((levels - levels.round()).abs().max()) < _OFF_GRID:
            return
    raise VPromptError(
        f"The images are floats from {low:.3g} to {high:.3g}, but normalised for this model they "
        f"lie between {least:.3g} and {most:.3g}, and are not all between 0 and 1. "
        "`artifact.preprocess(images)` normalises images of any kind, and `predict` labels them; "
        "to use these as they are, open the artefact with `check=False`."
    )


def _picture(image: Image.Image | NDArray[Any] | Tensor, values: Values) -> Image.Image:
    """Return an image in memory as Pillow's, of whatever mode."""
    if isinstance(image, Image.Image):
        return image
    _check_layout(image)
    if isinstance(image, Tensor):
        on_cpu = image.detach().cpu()
        on_cpu = on_cpu.permute(1, 2, 0) if on_cpu.ndim == 3 else on_cpu
        array = (on_cpu.float() if on_cpu.dtype == torch.bfloat16 else on_cpu).numpy()
    else:
        array = image
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim == 2:
        if array.dtype.kind == "f" and values.real is not None:
            return Image.fromarray(array.astype(np.float32))
        if array.dtype.kind in "iu" and values.integer is not None:
            return Image.fromarray(array.astype(np.int32))
    return Image.fromarray(_eight_bits(array))


def _eight_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return whole numbers from 0 to 255, of such or of floats from 0 to 1."""
    if array.dtype.kind not in "fiu":
        raise VPromptError(
            f"An image holds whole numbers from 0 to 255, or floats from 0 to 1, but got "
            f"{array.dtype}."
        )
    low, high = array.min(), array.max()
    if array.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise VPromptError(
                f"An image of whole numbers goes from 0 to 255, but got {low} to {high}. Scale it "
                "yourself, or give the file: the range of deep images stands in the artefact."
            )
        return array.astype(np.uint8)
    if not np.isfinite((low, high)).all():
        raise VPromptError("An image holds values that are not finite.")
    if low < -_SLACK:
        raise VPromptError(
            f"An image of floats goes from 0 to 1, but got {low:.3g} to {high:.3g}, as if it were "
            "normalised already. Give the image itself; a normalised tensor is what "
            "`classifier(...)` takes."
        )
    if high > 1 + _SLACK:
        raise VPromptError(
            f"An image of floats goes from 0 to 1, but got {low:.3g} to {high:.3g}. Divide by 255, "
            "or give whole numbers (uint8)."
        )
    return (array.clip(0, 1).astype(np.float64) * 255).round().astype(np.uint8)


def _check_layout(image: NDArray[Any] | Tensor) -> None:
    """Raise VPromptError unless channels stand where arrays or tensors have them."""
    shape, tensor = tuple(image.shape), isinstance(image, Tensor)
    if 0 in shape:
        raise VPromptError(f"There is no image in the shape {list(shape)}.")
    first, last = (shape[-3], shape[-1]) if len(shape) in (3, 4) else (0, 0)
    if len(shape) == 2 or (first if tensor else last) in _CHANNELS:
        return
    hint = ""
    if (last if tensor else first) in _CHANNELS:
        moved = "image.permute(2, 0, 1)" if tensor else "image.transpose(1, 2, 0)"
        hint = f" Its channels stand {'last' if tensor else 'first'}: `{moved}` moves them."
    what = "a tensor" if tensor else "an array"
    raise VPromptError(f"{_LAYOUTS}, but got {what} of shape {list(shape)}.{hint}")
