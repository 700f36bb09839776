"""Augment: training images cut out and mirrored anew in every epoch, as few-shot methods train.

Everything is drawn from the seed, the epoch and the image's number, so an image is cut alike
whatever batch, process or second look of the same epoch asks for it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vprompt.core.randomness import stream
from vprompt.core.types import Labels
from vprompt.data.preprocessing import DataConfig
from vprompt.data.task import Examples

_AREAS, _RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
_TRIES = 10


@dataclass(frozen=True, eq=False)
class Cropped(Examples):
    """A split of which every image comes as a part of it, at the size of the whole.

    The parts are cut from the pixels that are kept, which have the model's size already, and
    enlarged by its interpolation.
    """

    interpolation: str
    seed: int
    epoch: int

    @classmethod
    def of(cls, examples: Examples, config: DataConfig, seed: int, epoch: int) -> "Cropped":
        """Return a split as one epoch of a run sees it."""
        pixels, labels = examples.pixels, examples.labels
        return cls(pixels, labels, examples.digest, config.interpolation, seed, epoch)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Labels]]:
        """Yield `(pixels, labels)` in the given order."""
        for rows in self.parts(size, order):
            yield (
                torch.from_numpy(np.stack([self.cut(row) for row in rows.tolist()])),
                (self.labels[rows]),
            )

    def cut(self, row: int) -> NDArray[np.uint8]:
        """Return a part of one image, mirrored every other time."""
        drawn = stream(self.seed, f"crop, epoch {self.epoch}, image {row}")
        whole = self.pixels[row]
        height, width = whole.shape[:2]
        part = Image.fromarray(whole).crop(crop_box(height, width, drawn))
        method = Image.Resampling[self.interpolation.upper()]
        found = np.asarray(part.resize((width, height), method))
        return found[:, ::-1] if bool(torch.rand((), generator=drawn) < 0.5) else found


def crop_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom of a part of an image.

    It has 8 % to all of the area, uniform, and a ratio of width to height between 3/4 and 4/3,
    uniform in its logarithm. After ten that do not fit, it is the largest in the middle that does.

    Reference: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, arXiv 1409.4842.
    """
    low, high = (math.log(ratio) for ratio in _RATIOS)
    for _ in range(_TRIES):
        first, second, *place = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (_AREAS[0] + (_AREAS[1] - _AREAS[0]) * first)
        ratio = math.exp(low + (high - low) * second)
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = (
                int(share * (space + 1))
                for share, space in zip(place, (width - wide, height - tall), strict=True)
            )
            return left, top, left + wide, top + tall
    wide = min(width, round(height * _RATIOS[1]))
    tall = min(height, round(width / _RATIOS[0]))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall
