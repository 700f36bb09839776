"""Preprocessing: how pixels become the input of one backbone, as plain numbers."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from vprompt.core.errors import VPromptError

LARGEST_SIDE = 4096  # pixels
ImageSize: TypeAlias = int | tuple[int, int]  # the side of a square, or (height, width)


def pair(size: ImageSize) -> tuple[int, int]:
    """Return height and width, which for a number are the same."""
    return (size, size) if isinstance(size, int) else size


def sides(size: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels; a size that no image has is refused."""
    height, width = pair(size)
    if isinstance(size, bool) or not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise VPromptError(
            f"An image size (--image-size) is a number of pixels from 1 to {LARGEST_SIDE}, or "
            f"HEIGHTxWIDTH such as 256x128, but got {shown(height, width)}."
        )
    return height, width


def size_of(input_size: Sequence[int]) -> ImageSize:
    """Return what a backbone is opened with, of channels, height and width."""
    height, width = (int(side) for side in input_size[1:])
    return height if height == width else (height, width)


def checked(size: ImageSize) -> ImageSize:
    """Return a size as it is written down, a square as one number, if images can have it."""
    height, width = sides(size)
    return height if height == width else (height, width)


def read_size(text: str) -> ImageSize:
    """Read what a person types: `224`, or height and width as in `256x128`."""
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) > 2 or not all(part.strip().lstrip("-").isdecimal() for part in parts):
        raise VPromptError(
            f"--image-size is a number of pixels such as 224, or HEIGHTxWIDTH such as 256x128, but "
            f"got {text!r}."
        )
    return checked((int(parts[0]), int(parts[-1])))


def shown(height: int, width: int) -> str:
    """Return a size as a person types it: one number for a square."""
    return str(height) if height == width else f"{height}x{width}"


def check_filled(size: tuple[int, int], patch: tuple[int, int], name: str) -> None:
    """Raise VPromptError unless images are whole patches high and wide; or a border is lost."""
    if not any(side % step for side, step in zip(size, patch, strict=True)):
        return
    below = [max(side // step, 1) * step for side, step in zip(size, patch, strict=True)]
    above = [-(-side // step) * step for side, step in zip(size, patch, strict=True)]
    near = dict.fromkeys(shown(*each) for each in (below, above))
    raise VPromptError(
        f"Images of {size[0]} x {size[1]} pixels do not fill the patches of {name!r}, which have "
        f"{patch[0]} x {patch[1]}: a border would be left out, or made up. Choose a multiple of "
        f"that as --image-size, such as {' or '.join(near)}."
    )


Range = tuple[float, float]


@dataclass(frozen=True)
class Values:
    """Which values become black and white in images of more than 8 bits a channel.

    `integer` is for whole numbers, `real` for floats; without one, each image is left to itself.
    The keys are ours: timm knows images of 8 bits alone.
    """

    integer: Range | None = None
    real: Range | None = None

    def to_json(self) -> dict[str, list[float]]:
        """Return plain lists; a range that is not given is left out."""
        return {key: list(value) for key, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Values":
        """Read what `to_json` wrote; raises ValueError where it is no range."""
        if not isinstance(values, dict):
            raise ValueError(f"its ranges of values are {values!r}")
        found = {}
        for key in ("integer", "real"):
            if values.get(key) is not None:
                low, high = (float(v) for v in values[key])
                if not (math.isfinite(low) and math.isfinite(high) and low < high):
                    raise ValueError(f"its range of values is {values[key]}")
                found[key] = (low, high)
        return cls(**found)


@dataclass(frozen=True)
class DataConfig:
    """How pixels become a backbone's input; the keys and values are timm's.

    `crop_mode` is `squash` (resize both sides, aspect ignored, as the VTAB protocols do) or
    `center` (resize the shorter side to size / crop_pct, then cut the centre). `values` is a range
    that an artefact's training images had; a backbone has none.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 1.0
    crop_mode: str = "squash"
    values: Values | None = None

    @property
    def image_size(self) -> ImageSize:
        """The side of a square, or height and width: what a backbone is opened with."""
        return size_of(self.input_size)

    @property
    def shown_size(self) -> str:
        """The image size as a person types it: `224`, or `256x128`."""
        return shown(*self.input_size[1:])

    def resized(self, size: tuple[int, int]) -> "DataConfig":
        """Return the same for images of another height and width."""
        return replace(self, input_size=(self.input_size[0], *size))

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, as they stand in `adapter_config.json`."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        del plain["values"]
        return plain if self.values is None else {**plain, "value_range": self.values.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataConfig":
        """Read what `to_json` wrote."""
        return cls(
            input_size=tuple(int(v) for v in values["input_size"]),  # type: ignore[arg-type]
            interpolation=str(values["interpolation"]),
            mean=tuple(float(v) for v in values["mean"]),  # type: ignore[arg-type]
            std=tuple(float(v) for v in values["std"]),  # type: ignore[arg-type]
            crop_pct=float(values.get("crop_pct", 1.0)),
            crop_mode=str(values.get("crop_mode", "squash")),
            values=Values.from_json(values["value_range"]) if "value_range" in values else None,
        )
