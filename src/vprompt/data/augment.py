"""Augment: training images cut out, shifted, mirrored or recoloured anew in every epoch.

`crop_flip` cuts and mirrors as few-shot methods train, `weak` shifts and mirrors, and `randaug`
does two operations of RandAugment besides.

Everything is drawn from the seed, the epoch and the image's number, so an image is cut alike
whatever batch, process or second look of the same epoch asks for it.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.types import Targets
from vprompt.data.preprocessing import DataConfig
from vprompt.data.task import Examples

_AREAS, _RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
_TRIES = 10


@dataclass(frozen=True, eq=False)
class Varied(Examples):
    """A split whose every image comes otherwise in each epoch, at its own size."""

    config: DataConfig
    seed: int
    epoch: int

    @classmethod
    def of(cls, examples: Examples, config: DataConfig, seed: int, epoch: int) -> "Varied":
        """Return a split as one epoch of a run sees it."""
        return cls(examples.pixels, examples.labels, examples.digest, config, seed, epoch)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Targets]]:
        """Yield `(pixels, labels)` in the given order."""
        for rows in self.parts(size, order):
            yield (
                torch.from_numpy(np.stack([self.cut(row) for row in rows.tolist()])),
                (self.labels[rows]),
            )

    def cut(self, row: int) -> NDArray[np.uint8]:
        """Return what an epoch shows of one image."""
        raise NotImplementedError


class Cropped(Varied):
    """A split of which every image comes as a part of it, at the size of the whole.

    The parts are cut from the pixels that are kept, which have the model's size already, and
    enlarged by its interpolation.
    """

    def cut(self, row: int) -> NDArray[np.uint8]:
        """Return a part of one image, mirrored every other time."""
        drawn = stream(self.seed, f"crop, epoch {self.epoch}, image {row}")
        whole = self.pixels[row]
        height, width = whole.shape[:2]
        part = Image.fromarray(whole).crop(crop_box(height, width, drawn))
        method = Image.Resampling[self.config.interpolation.upper()]
        found = np.asarray(part.resize((width, height), method))
        return found[:, ::-1] if bool(torch.rand((), generator=drawn) < 0.5) else found


class Weak(Varied):
    """A split of which every image is shifted by up to an eighth and mirrored every other time.

    Where the image was moved away from, its own border is repeated in a mirror.
    """

    def cut(self, row: int) -> NDArray[np.uint8]:
        """Return one image, shifted and perhaps mirrored."""
        height, width = self.pixels.shape[1:3]
        return self._through(row, _weak(height, width))

    def _through(self, row: int, change: Callable[[Tensor], Tensor]) -> NDArray[np.uint8]:
        """Pass one image through a transform of torchvision's, whose draws follow from its row."""
        drawn = stream(self.seed, f"augment, epoch {self.epoch}, image {row}")
        image = torch.from_numpy(self.pixels[row].copy()).permute(2, 0, 1)
        # torchvision draws from the generator of the process, which is given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn.initial_seed())
            found = change(image)
        made: NDArray[np.uint8] = found.permute(1, 2, 0).contiguous().numpy()
        return made


class RandAugmented(Weak):
    """A split as `Weak` has it, with two operations of RandAugment on every image.

    Reference: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced
    search space", NeurIPS 2020, arXiv 1909.13719.
    """

    def cut(self, row: int) -> NDArray[np.uint8]:
        """Return one image, shifted, perhaps mirrored, and changed twice."""
        height, width = self.pixels.shape[1:3]
        return self._through(row, _randaug(height, width))


KINDS: dict[str, type[Varied]] = {"crop_flip": Cropped, "weak": Weak, "randaug": RandAugmented}


def varied(kind: str, examples: Examples, config: DataConfig, seed: int, epoch: int) -> Varied:
    """Return a split as one epoch sees it, varied by one of `KINDS`."""
    return KINDS[kind].of(examples, config, seed, epoch)


@functools.cache
def _weak(height: int, width: int) -> Callable[[Tensor], Tensor]:
    transforms = _transforms()
    # A mirror repeats at most the image itself.
    room = [min(max(1, side // 8), side - 1) for side in (width, height)]
    moved: Callable[[Tensor], Tensor] = transforms.Compose(
        [
            transforms.RandomCrop((height, width), padding=room, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
        ]
    )
    return moved


@functools.cache
def _randaug(height: int, width: int) -> Callable[[Tensor], Tensor]:
    transforms = _transforms()
    usual = transforms.RandAugment(num_ops=2, magnitude=9)  # torchvision's own defaults
    changed: Callable[[Tensor], Tensor] = transforms.Compose([_weak(height, width), usual])
    return changed


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise VPromptError(
            "--augment weak and randaug need torchvision, which is not installed. Run `pip install "
            "'vprompt[data]'`, or use --augment crop_flip."
        ) from None
    return v2


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
