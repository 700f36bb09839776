"""Values: images of more than 8 bits a channel become 8 bits, by one range for all of a split.

Whole numbers are taken from 0 to the largest that fits into the bits which the largest value needs:
12 bits in a file of 16 are not black, and 16 bits are divided by 257. Floats go from 0 to the
largest value, or to 1 where that lies between a half and 1. Values below 0, or far from 0 together,
span the range themselves. What is no number, infinite or declared as no data is black; a value that
stands far apart from all others, as -9999 does, does not count.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vprompt.data.preprocessing import Range

Kind = Literal["integer", "real"]
Array = NDArray[Any]
_NODATA_TAG = 42113  # of TIFF, as GDAL writes it
_FILL = 1e19  # floats as large as this are fill values of scientific formats
_KNOWN_FILL = (  # of whole numbers and floats, with either sign
    *(999, 9999, 99999, 999999, 32766, 32767, 32768, 65534, 65535, 2147483647, 2147483648),
)
_FAR, _FAR_KNOWN = 2.0, 0.5  # gap over the span of all others, from which a value stands apart
_ENDS, _MIDDLE = 16, 256  # values kept of one image
_COUNTED = 2**20  # span of whole numbers that are counted, not sorted
_BAND = 2**22  # pixels that are worked on at once


def kind_of(image: Image.Image) -> Kind | None:
    """Return whether an image that was opened, but not read, holds whole numbers or floats.

    None means 8 bits a channel or fewer. Of 16 bits a colour Pillow keeps the upper 8; they count
    as whole numbers of 16 bits.
    """
    if image.mode == "F":
        return "real"
    if image.mode.startswith("I"):
        return "integer"
    return "integer" if is_deep_colour(image) else None


def is_deep_colour(image: Image.Image) -> bool:
    """Say whether an opened file has 16 bits a colour, of which Pillow will keep 8."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    for tile in getattr(image, "tile", None) or ():
        args = tile[3]
        raw = args[0] if isinstance(args, tuple) and args else args
        if isinstance(raw, str) and ";16" in raw:
            return True
    return False


def no_data(image: Image.Image) -> float | None:
    """Return the value that a TIFF declares to be no data."""
    tags = getattr(image, "tag_v2", {})
    try:
        return float(str(tags[_NODATA_TAG]).strip("\0 "))
    except (KeyError, ValueError):
        return None


def sample(image: Image.Image, absent: float | None) -> Array:
    """Return distinct values of an image, sorted: the outermost, and some between them."""
    whole = image.mode != "F"
    parts = [_distinct(band[np.isfinite(band)], whole) for _, band in _bands(image, absent)]
    return _thinned(np.unique(np.concatenate(parts)))


def range_of(samples: Iterable[Array], kind: Kind) -> Range:
    """Return the values that become black and white, from the samples of all images."""
    parts = [part for part in samples if len(part)]
    values = _without_strays(np.unique(np.concatenate(parts)) if parts else np.zeros(1))
    low, high = float(values[0]), float(values[-1])
    span = high - low
    if span and (low < 0 or span < high / 4):
        return low, high
    if kind == "integer":
        return 0.0, float(2 ** int(max(high, 1)).bit_length() - 1)
    return 0.0, 1.0 if high <= 0 or 0.5 < high <= 1 else high


def eight_bits(image: Image.Image, given: Range, absent: float | None) -> Image.Image:
    """Return an image of 8 bits a channel, `given` what becomes black and what white."""
    low, high = given
    colours = () if image.mode in ("I", "F") or image.mode.startswith("I;") else (3,)
    made = np.empty((image.height, image.width, *colours), np.uint8)
    for rows, band in _bands(image, absent):
        known = np.where(np.isfinite(band), band, low)
        scaled = (known - low) / (high - low) * 255
        made[rows] = np.clip(scaled, 0, 255).round().reshape(made[rows].shape)
    shown = Image.fromarray(made)
    if image.mode == "RGBA":
        shown.putalpha(image.getchannel("A"))
    return shown


def _bands(image: Image.Image, absent: float | None) -> Iterator[tuple[slice, Array]]:
    """Yield some rows at a time with their values, NaN where there is no number."""
    whole = np.asarray(image)
    height = max(1, _BAND // max(1, image.width))
    for start in range(0, image.height, height):
        rows = slice(start, start + height)
        values = whole[rows].astype(np.float64)
        if values.ndim == 3:  # the upper 8 of 16 bits, without an alpha channel
            values = values[..., :3] * 257
        if image.mode == "F":
            values[~(np.abs(values) < _FILL)] = np.nan
        if absent is not None:
            values[np.isclose(values, absent, rtol=1e-6, atol=0)] = np.nan
        yield rows, values


def _distinct(values: Array, whole: bool) -> Array:
    """Return a sample of distinct values; of whole numbers without sorting, which takes longer."""
    if not whole or not len(values):
        return _thinned(np.unique(values))
    low, high = int(values.min()), int(values.max())
    if high - low > _COUNTED:
        return _thinned(np.unique(values))
    counts = np.bincount((values - low).astype(np.int64).ravel())
    return _thinned(np.flatnonzero(counts).astype(np.float64) + low)


def _thinned(distinct: Array) -> Array:
    """Return sorted values without most of those in the middle."""
    if len(distinct) <= 2 * _ENDS + _MIDDLE:
        return distinct
    last = len(distinct) - 1
    middle = np.linspace(_ENDS, last - _ENDS, _MIDDLE).astype(int)
    ends = np.arange(_ENDS)
    return distinct[np.concatenate([ends, middle[1:-1], last - ends[::-1]])]


def _without_strays(values: Array) -> Array:
    """Leave out values at either end that stand far apart from all others."""
    while len(values) > 3:
        gaps = (values[1] - values[0], values[-1] - values[-2])
        spans = (values[-1] - values[1], values[-2] - values[0])
        if gaps[0] > _far(values[0]) * spans[0]:
            values = values[1:]
        elif values[-1] > 1 and gaps[1] > _far(values[-1]) * spans[1]:  # a share may be a peak
            values = values[:-1]
        else:
            break
    return values


def _far(value: float) -> float:
    return _FAR_KNOWN if abs(value) in _KNOWN_FILL else _FAR
