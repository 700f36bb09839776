"""Resizing: Pillow's resize and crop as matrix products, so that a traced model can hold it.

A side's resize is linear, so it is one matrix `[out, in]`; the matrix is computed in the model, of
the size of the image that comes. Between the sides values are rounded, as Pillow rounds them.
"""

import math

import torch
from torch import Tensor, nn

from vprompt.core.errors import VPromptError
from vprompt.data.preprocessing import DataConfig

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


class Resizing(nn.Module):
    """`uint8 [batch, height, width, 3]` of any size in, whole numbers at the model's size out."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        if config.interpolation not in _SUPPORT or config.crop_mode not in ("squash", "center"):
            raise VPromptError(
                f"A resize of interpolation {config.interpolation!r} and crop_mode "
                f"{config.crop_mode!r} is not known, so it cannot go into the model. Export "
                "without --preprocess."
            )
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `[batch, height, width, 3]` in float, at the input size of the backbone."""
        _, height, width = self.config.input_size
        tall, wide = self._resized(pixels)
        rows = self._matrix(_places(pixels[0, :, 0, 0]), tall, height)
        columns = self._matrix(_places(pixels[0, 0, :, 0]), wide, width)
        planes = pixels.permute(0, 3, 1, 2).float()
        across = _rounded(planes @ columns.T)
        return _rounded(rows @ across).permute(0, 2, 3, 1)

    def _resized(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return height and width after the resize and before the crop, as numbers in tensors."""
        _, height, width = self.config.input_size
        sides = torch.tensor([height, width], dtype=torch.float64)
        if self.config.crop_mode == "squash":
            return sides[0], sides[1]
        own = torch.stack(
            [_count(_places(line)) for line in (pixels[0, :, 0, 0], pixels[0, 0, :, 0])]
        )
        wanted = torch.tensor(
            [round(side / self.config.crop_pct) for side in (height, width)], dtype=torch.float64
        )
        made = torch.maximum((own * (wanted / own).amax()).round(), sides)
        return made[0], made[1]

    def _matrix(self, place: Tensor, resized: Tensor, kept: int) -> Tensor:
        """Return `[kept, places]`: the middle of `resized` places, each a mean of old ones."""
        first = torch.floor((resized - kept) / 2)
        scale = _count(place) / resized
        centre = (first + torch.arange(kept, dtype=torch.float64) + 0.5) * scale
        distance = (place + 0.5 - centre[:, None]) / scale.clamp_min(1.0)
        weight = _kernel(self.config.interpolation, distance.abs())
        return (weight / weight.sum(1, keepdim=True)).float()


def _places(line: Tensor) -> Tensor:
    """Return 0, 1, 2, ... for a line of pixels of any length."""
    return torch.arange(line.shape[0], dtype=torch.float64)


def _count(places: Tensor) -> Tensor:
    """Return how many places there are as a number of the graph."""
    return places[-1] + 1


def _rounded(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5).clamp(0, 255)


def _kernel(name: str, distance: Tensor) -> Tensor:
    """Return the weight at a distance of at least 0, in old pixels."""
    near = distance < _SUPPORT[name]
    if name == "bilinear":
        return torch.where(near, 1 - distance, 0.0)
    if name == "bicubic":  # of Keys, with Pillow's slope of -0.5
        inner = (1.5 * distance - 2.5) * distance * distance + 1
        outer = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        return torch.where(distance < 1, inner, torch.where(near, outer, 0.0))
    return torch.where(near, _sinc(distance) * _sinc(distance / 3), 0.0)


def _sinc(distance: Tensor) -> Tensor:
    angle = (distance * math.pi).clamp_min(1e-12)
    return angle.sin() / angle
