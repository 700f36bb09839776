"""Images: the files of a split become resized pixels once, in a cache that survives the process.

The resize is Pillow's own, so the core needs no torchvision; normalisation is the backbone's.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vprompt.core import files
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
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

_CACHE_VERSION = "1"
_DEEP_VERSION = "1"  # of splits with images of more than 8 bits a channel
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
        return Pixels(array, tuple(range(len(array))), _content_digest(array))
    folder = _folder(source, config, skip_bad)
    if (known := _read(folder, shallow=True)) is not None:
        return _told(known, source, progress)
    with collected():  # said when the images are decoded
        kinds = _deep_kinds(source)
    given: Values | None = None
    if kinds:
        given = values() if callable(values) else values
        scale = "own" if given is None else json.dumps(given.to_json(), sort_keys=True)
        folder = _folder(source, config, skip_bad, _DEEP_VERSION, scale)
    found = _read(folder)
    if found is not None and not kinds:
        _mark_shallow(folder)  # so that the next time no head is read
    if found is None:
        if kinds and given is None:
            with collected():
                given = _range_over(source, kinds, progress)
        found = _decode_into(folder, source, config, given, skip_bad, progress)
    return _told(found, source, progress)


def _mark_shallow(folder: Path) -> None:
    """Write into a cache of before that its split has no image of more than 8 bits a channel."""
    with files.optional():
        files.write_json(folder / _INDEX, {"warned": [], **files.read_json(folder / _INDEX)})


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
    _, height, width = config.input_size
    array = np.empty((len(paths), height, width, 3), dtype=np.uint8)

    def decode(row: int) -> str | TooLarge | None:
        path = paths[row]
        warned.here(row)
        try:
            array[row] = fit(read_rgb(path, given or Values()), config)
            return None
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
        for result in pool.map(decode, range(len(paths))):
            results.append(result)
            step.advance()
    if not skip_bad:
        _check_all_read(results)
    kept = [row for row, result in enumerate(results) if result is None]
    if not kept:
        first = str(results[0]).rstrip(".")
        raise VPromptError(f"None of {len(paths)} images can be read, first: {first}.")
    array = array[kept] if len(kept) < len(paths) else array
    told = tuple((row, text) for row, text in sorted(warned.found.items()) if results[row] is None)
    made = Pixels(array, tuple(kept), _content_digest(array), given, told)
    index: dict[str, Any] = {"kept": kept, "digest": made.digest, "warned": told}
    index["value_range"] = None if given is None else given.to_json()
    if any(isinstance(result, TooLarge) for result in results):
        index["limit"] = megapixel_limit()
    with files.optional():
        with files.atomic_folder(folder, overwrite=True) as draft:
            np.save(draft / _PIXELS, array, allow_pickle=False)
            files.write_json(draft / _INDEX, index)
        return _read(folder) or made
    return made


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


def _read(folder: Path, *, shallow: bool = False) -> Pixels | None:
    """Return what is kept there; nothing where it is absent, damaged, or of another limit.

    `shallow` asks for a split that is known to have no image of more than 8 bits: what was kept
    before that was looked at does not say so.
    """
    try:
        index = files.read_json(folder / _INDEX)
        if shallow and "warned" not in index:
            return None
        array = np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False)
        stat = (folder / _PIXELS).stat()
        if index.get("limit", megapixel_limit()) != megapixel_limit():
            return None
        if not _is_sound(folder, index["digest"], stat.st_size, stat.st_mtime_ns):
            return None
        kept, said = index["kept"], index.get("warned", ())
        scale = index.get("value_range")
        return Pixels(
            array,
            tuple(kept),
            index["digest"],
            None if scale is None else Values.from_json(scale),
            tuple((int(row), str(text)) for row, text in said),
        )
    except Exception:  # a damaged file makes NumPy raise almost anything
        return None


@functools.lru_cache(maxsize=256)
def _is_sound(folder: Path, digest: str, size: int, changed: int) -> bool:
    """Say whether the pixels on the disk are those that were written; asked once in a process."""
    del size, changed
    array = np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False)
    return bool(array.dtype == np.uint8 and _content_digest(array) == digest)


def _folder(paths: Sequence[Path], config: DataConfig, skip_bad: bool, *more: str) -> Path:
    # Name, size and time of change, not content: reading every byte would cost as much as decoding.
    parts = [_CACHE_VERSION, str(config.input_size), config.interpolation, config.crop_mode]
    parts += [str(config.crop_pct), str(skip_bad), *more]
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            raise VPromptError(f"No image file at {path}, although a list names it.") from None
        parts.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return files.cache_folder() / "images" / files.digest(*parts)[:32]


def _content_digest(array: NDArray[np.uint8]) -> str:
    total = hashlib.sha256(f"{array.shape}".encode())
    for image in array:  # one at a time: a whole split in bytes would be a second copy of it
        total.update(np.ascontiguousarray(image).data)
    return total.hexdigest()
