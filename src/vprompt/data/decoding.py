"""Decoding: one image file of any kind becomes RGB, and fits the input of a backbone.

Pillow's own bound on the size of an image is one number for a whole program and speaks of attacks.
Here images are held to a bound of ours, which a person can raise.
"""

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vprompt.core.errors import VPromptError
from vprompt.data import values
from vprompt.data.preprocessing import DataConfig, Values
from vprompt.data.values import Array, Kind

LIMIT, LIMIT_NAME = 500.0, "VPROMPT_MAX_MEGAPIXELS"
EACH_ITSELF = Values()  # the range of every image is its own
_TEXT = 200  # characters kept of a warning
_LARGE = 10**8  # pixels, from which images are decoded one after another, for the memory
_EIGHT_BITS = (".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".avif", ".qoi")
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


class Collected:
    """What was warned of while files were decoded, by the row of the file.

    A warning of Pillow's does not name the file, and filters are one for all threads: `collected`
    sets them once, around all of them.
    """

    def __init__(self) -> None:
        self.found: dict[int, str] = {}
        self._now = threading.local()

    def here(self, row: int) -> None:
        """Say which file this thread is about to decode."""
        self._now.row = row

    def show(self, message: Warning | str, *rest: object, **more: object) -> None:
        """Keep the first warning on a file; takes the place of `warnings.showwarning`."""
        del rest, more
        row = getattr(self._now, "row", None)
        if row is not None:
            text = (str(message).strip() or "no text").splitlines()[0][:_TEXT]
            self.found.setdefault(row, text)


@contextlib.contextmanager
def collected() -> Iterator[Collected]:
    """Collect what is warned of in the block, in all threads, in place of showing it."""
    found = Collected()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = found.show
        yield found


class TooLarge(VPromptError):
    """An image has more pixels than the limit; it is not broken."""


def megapixel_limit() -> float:
    """Return how many millions of pixels an image may have: `$VPROMPT_MAX_MEGAPIXELS`, or 500."""
    text = os.environ.get(LIMIT_NAME, "").strip()
    try:
        limit = float(text) if text else LIMIT
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise VPromptError(
            f"{LIMIT_NAME} is a number of millions of pixels, such as 1000, but got {text!r}."
        )
    return limit


def read_rgb(source: Path | BytesIO, given: Values = EACH_ITSELF) -> Image.Image:
    """Read one image file of any mode as RGB.

    Images of more than 8 bits a channel are scaled to the `given` range, or else to their own.
    """
    with _opened(source) as opened:
        return as_rgb(opened, given)


def as_rgb(opened: Image.Image, given: Values = EACH_ITSELF) -> Image.Image:
    """Return one image of any mode, opened or made in memory, as `read_rgb` does a file."""
    kind, absent = values.kind_of(opened), values.no_data(opened)
    colour = values.is_deep_colour(opened)
    image = ImageOps.exif_transpose(opened)
    if kind is not None:
        chosen = getattr(given, kind) or values.range_of([values.sample(image, absent)], kind)
        if colour and chosen[1] < 2**16 - 1:
            warnings.warn(
                "of 16 bits a colour the upper 8 are read, and few are used", stacklevel=2
            )
        image = values.eight_bits(image, chosen, absent)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        # What lies under full transparency is arbitrary; a page is white.
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def deep_kind(path: Path) -> Kind | None:
    """Return what an image of more than 8 bits a channel holds; of others, and of no image, None.

    Only the file's head is read.
    """
    if path.suffix.lower() in _EIGHT_BITS:
        return None
    with contextlib.suppress(Exception), _opened(path) as opened:  # decoding says what is wrong
        return values.kind_of(opened)
    return None


def sample_values(path: Path) -> Array:
    """Return some values of an image of more than 8 bits, sorted; none of a broken file."""
    with contextlib.suppress(Exception), _opened(path) as opened:  # decoding says what is wrong
        return values.sample(opened, values.no_data(opened))
    return np.zeros(0)


def fit(image: Image.Image, config: DataConfig) -> NDArray[np.uint8]:
    """Resize and crop one RGB image to the backbone's input size."""
    _, height, width = config.input_size
    if config.interpolation not in _RESAMPLING:
        raise VPromptError(
            f"No interpolation called {config.interpolation!r}. There are: "
            f"{', '.join(sorted(_RESAMPLING))}."
        )
    method = _RESAMPLING[config.interpolation]
    if config.crop_mode == "squash":
        return np.asarray(image.resize((width, height), method))
    if config.crop_mode == "center":
        wide, tall = round(width / config.crop_pct), round(height / config.crop_pct)
        scale = max(wide / image.width, tall / image.height)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        resized = image.resize(size, method)
        return np.asarray(resized.crop((left, top, left + width, top + height)))
    raise VPromptError(f"No crop_mode called {config.crop_mode!r}. There are: center, squash.")


class _Bound:
    """Lifts Pillow's bound while any thread of ours reads, and puts it back after the last."""

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0
        self._before: int | None = None
        self.one_large = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                Image.MAX_IMAGE_PIXELS = self._before


_BOUND = _Bound()


@contextlib.contextmanager
def _opened(source: Path | BytesIO) -> Iterator[Image.Image]:
    """Yield an image of which the head was read; raises TooLarge above the limit."""
    limit = megapixel_limit()
    with _BOUND, Image.open(source) as opened:
        pixels = opened.width * opened.height
        if pixels > limit * 1e6:
            raise TooLarge(
                f"{source if isinstance(source, Path) else 'The image'} has {opened.width} x "
                f"{opened.height} pixels, and the limit is {limit:g} megapixels. To use it, set "
                f"{LIMIT_NAME}={math.ceil(pixels / 1e6)}."
            )
        with _BOUND.one_large if pixels > _LARGE else contextlib.nullcontext():
            yield opened
