"""Images: the files of a split become resized pixels once, in a cache that survives the process.

The resize is Pillow's own, so the core needs no torchvision; normalisation is the backbone's.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vprompt.core import files, seals
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.data import pixel_files
from vprompt.data.decoding import (
    LIMIT_NAME,
    TooLarge,
    collected,
    deep_kind,
    fit,
    megapixel_limit,
    read_rgb,
    sample_values,
)
from vprompt.data.preprocessing import DataConfig, Values
from vprompt.data.values import Kind, range_of

_CACHE_VERSION = "2"
_DEEP_VERSION = "1"  # of splits with images of more than 8 bits a channel
_AHEAD = 256  # images that are decoded before the first of them is written
_TICK = 20_000_000  # nanoseconds: more than the clock of a file system takes from one to the next
_INDEX, _PIXELS = "index.json", "pixels.npy"


@dataclass(frozen=True, eq=False)
class Pixels:
    """Resized images `uint8 [images, height, width, 3]`, and which of the asked files they are.

    `values` is the range by which images of more than 8 bits became 8, None where there are none.
    `warned` says what Pillow warned of, by the row of the asked file.
    """

    array: NDArray[np.uint8]
    kept: tuple[int, ...]
    digest: str
    values: Values | None = None
    warned: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        """Count the images."""
        return len(self.array)


def load_pixels(
    source: Sequence[Path] | NDArray[np.uint8],
    config: DataConfig,
    *,
    values: Values | Callable[[], Values] | None = None,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Pixels:
    """Return all images at the backbone's size, from the cache where they were decoded before.

    Unreadable files raise an error that names them, unless `skip_bad` leaves them out. Images of
    more than 8 bits are scaled to `values`, which may be a function that is called if there are
    any; left out, it is the range over all that are given.
    """
    if len(source) == 0:
        raise VPromptError("There are no images to load.")
    if isinstance(source, np.ndarray):
        array = np.stack([fit(Image.fromarray(image), config) for image in source])
        return Pixels(array, tuple(range(len(array))), pixel_files.digest_of_array(array))
    folder = _folder(source, config, skip_bad)
    if (known := _read(folder)) is not None:
        return _told(known, source, progress)
    with collected():  # said when the images are decoded
        kinds = _deep_kinds(source)
    given: Values | None = None
    if kinds:
        given = values() if callable(values) else values
        scale = "own" if given is None else json.dumps(given.to_json(), sort_keys=True)
        folder = _folder(source, config, skip_bad, _DEEP_VERSION, scale)
    found = _read(folder) if kinds else None
    if found is None:
        if kinds and given is None:
            with collected():
                given = _range_over(source, kinds, progress)
        found = _decode_into(folder, source, config, given, skip_bad, progress)
    return _told(found, source, progress)


def _deep_kinds(paths: Sequence[Path]) -> dict[int, Kind]:
    """Return the rows of images of more than 8 bits a channel, and what they hold."""
    with ThreadPoolExecutor(4) as pool:
        found = enumerate(pool.map(deep_kind, paths))
        return {row: kind for row, kind in found if kind is not None}


def _range_over(paths: Sequence[Path], kinds: dict[int, Kind], progress: Progress) -> Values:
    """Return the range over all images of more than 8 bits, for each kind that occurs."""
    ranges = {}
    with ThreadPoolExecutor(4) as pool, progress.step("range of values", len(kinds)) as step:
        for kind in sorted(set(kinds.values())):
            samples = []
            rows = [row for row, each in kinds.items() if each == kind]
            for sample in pool.map(sample_values, [paths[row] for row in rows]):
                samples.append(sample)
                step.advance()
            ranges[kind] = range_of(samples, kind)
    return Values(**ranges)


def _decode_into(
    folder: Path,
    paths: Sequence[Path],
    config: DataConfig,
    given: Values | None,
    skip_bad: bool,
    progress: Progress,
) -> Pixels:
    """Decode into the cache, an image at a time, or into memory where it cannot be written."""
    size = config.input_size[1:]
    with files.optional():
        with files.atomic_folder(folder, overwrite=True) as draft:
            with pixel_files.PixelFile(draft / _PIXELS, (size[0], size[1])) as file:
                index = _decode(file, paths, config, given, skip_bad, progress)
            index["pixels"] = pixel_files.digest_of_file(draft / _PIXELS)
            files.write_json(draft / _INDEX, seals.seal(index))
        if (found := _read(folder)) is not None:
            return found
    held = pixel_files.PixelList()
    index = _decode(held, paths, config, given, skip_bad, progress)
    array = np.stack(held.images)
    told = tuple((int(row), str(text)) for row, text in index["warned"])
    return Pixels(array, tuple(index["kept"]), pixel_files.digest_of_array(array), given, told)


def _decode(
    sink: pixel_files.PixelFile | pixel_files.PixelList,
    paths: Sequence[Path],
    config: DataConfig,
    given: Values | None,
    skip_bad: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Hand every image that can be read to the sink; return what the index says of them."""

    def decode(row: int) -> NDArray[np.uint8] | str | TooLarge:
        path = paths[row]
        warned.here(row)
        try:
            return fit(read_rgb(path, given or Values()), config)
        except TooLarge as error:
            return error
        except VPromptError:
            raise
        except Exception as error:  # broken files make Pillow raise almost anything
            return f"{path} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"

    results: list[str | TooLarge | None] = []
    with (
        collected() as warned,
        ThreadPoolExecutor(4) as pool,
        progress.step("decode images", len(paths)) as step,
    ):
        for start in range(0, len(paths), _AHEAD):
            rows = range(start, min(start + _AHEAD, len(paths)))
            for result in pool.map(decode, rows):
                if isinstance(result, np.ndarray):
                    sink.append(result)
                results.append(None if isinstance(result, np.ndarray) else result)
                step.advance()
    if not skip_bad:
        _check_all_read(results)
    kept = [row for row, result in enumerate(results) if result is None]
    if not kept:
        first = str(results[0]).rstrip(".")
        raise VPromptError(f"None of {len(paths)} images can be read, first: {first}.")
    told = [(row, text) for row, text in sorted(warned.found.items()) if results[row] is None]
    index: dict[str, Any] = {"kept": kept, "warned": told}
    index["value_range"] = None if given is None else given.to_json()
    if any(isinstance(result, TooLarge) for result in results):
        index["limit"] = megapixel_limit()
    return index


def _check_all_read(results: Sequence[str | TooLarge | None]) -> None:
    """Raise VPromptError that names the files which cannot be read or are too large."""
    bad = [result for result in results if isinstance(result, str)]
    large = [
        str(result).split(", and the limit")[0]
        for result in results
        if isinstance(result, TooLarge)
    ]
    said = []
    if bad:
        said.append(
            f"{len(bad)} of {len(results)} images cannot be read: {_some(bad)}. Mend or remove "
            "them, or add --skip-bad to leave them out."
        )
    if large:
        limit = megapixel_limit()
        said.append(
            f"{len(large)} of {len(results)} images are larger than {limit:g} megapixels: "
            f"{_some(large)}. Raise the limit, {LIMIT_NAME}, make them smaller, or add --skip-bad "
            "to leave them out."
        )
    if said:
        raise VPromptError(" ".join(said))


def _some(texts: Sequence[str], limit: int = 5) -> str:
    more = f"; and {len(texts) - limit} more" if len(texts) > limit else ""
    return "; ".join(texts[:limit]) + more


def _told(found: Pixels, paths: Sequence[Path], progress: Progress) -> Pixels:
    """Say how many files Pillow warned of."""
    if found.warned:
        row, text = found.warned[0]
        progress.say(
            f"warnings on {len(found.warned)} of {len(paths)} images, first {paths[row]}: {text}"
        )
    return found


def _read(folder: Path) -> Pixels | None:
    """Return what is kept there; nothing where it is absent, damaged, or of another limit."""
    if not os.path.isdir(folder):
        return None
    try:
        index = files.read_json(folder / _INDEX)
        if isinstance(index, dict) and "pixels" not in index:
            return None  # of an earlier release, whose files had no digests
        if not seals.is_whole(index):
            raise ValueError("its index is not what was written")
        array = np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False)
        if index.get("limit", megapixel_limit()) != megapixel_limit():
            return None
        if not _is_sound(folder, index["pixels"], _state(folder / _PIXELS)):
            raise ValueError("its pixels are not what was written")
        scale = index.get("value_range")
        files.touch(folder / _INDEX)
        return Pixels(
            array,
            tuple(index["kept"]),
            index["pixels"],
            None if scale is None else Values.from_json(scale),
            tuple((int(row), str(text)) for row, text in index["warned"]),
        )
    except Exception:  # a damaged file makes NumPy raise almost anything
        files.damaged(folder)
        return None


@functools.lru_cache(maxsize=256)
def _is_sound(folder: Path, digest: str, state: tuple[int, ...]) -> bool:
    """Say whether the pixels on the disk are those that were written; asked once in a process."""
    del state
    return pixel_files.digest_of_file(folder / _PIXELS) == digest


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes with a file: size, time of change, number, and time of the entry.

    The first two can be those of another content, as after `cp -p` or `touch -r`; the last is the
    system's own, and nobody sets it back.
    """
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)


def _folder(paths: Sequence[Path], config: DataConfig, skip_bad: bool, *more: str) -> Path:
    # What the system says of a file, not its content: reading it would cost as much as decoding.
    parts = [_CACHE_VERSION, str(config.input_size), config.interpolation, config.crop_mode]
    parts += [str(config.crop_pct), str(skip_bad), *more]
    latest = 0
    for path in paths:
        try:
            state = _state(path)
        except OSError:
            raise VPromptError(f"No image file at {path}, although a list names it.") from None
        parts.append(f"{path.resolve()} {state}")
        latest = max(latest, state[-1])
    if time.time_ns() - latest < _TICK:
        # Within one tick of its clock the system gives two changes the same time: let it pass, so
        # that whatever comes after this has another.
        time.sleep(_TICK / 1e9)
    return files.cache_folder() / "images" / files.digest(*parts)[:32]
