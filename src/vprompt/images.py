"""Images: files become resized pixels once, in a cache that survives the process.

The resize is Pillow's own, so the core needs no torchvision; normalisation is the backbone's.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vprompt import files
from vprompt.errors import VPromptError
from vprompt.preprocessing import DataConfig
from vprompt.progress import SILENT, Progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif")
_CACHE_VERSION = "1"
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, eq=False)
class Pixels:
    """Resized images `uint8 [images, height, width, 3]`, and which of the asked files they are."""

    array: NDArray[np.uint8]
    kept: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        """Count the images."""
        return len(self.array)


def read_rgb(source: Path | BytesIO) -> Image.Image:
    """Read one image file of any mode as RGB; 16-bit values are scaled, not clipped."""
    with Image.open(source) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":
            return _eight_bit(image).convert("RGB")
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
            # What lies under full transparency is arbitrary; a page is white.
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit integers by 257 and floats in [0, 1] by 255; other ranges are stretched."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        low, high = float(values.min(initial=0)), float(values.max(initial=1))
        values = (values - low) / max(high - low, 1e-12) * 255
    elif image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))


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


def load_pixels(
    source: Sequence[Path] | NDArray[np.uint8],
    config: DataConfig,
    *,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Pixels:
    """Return all images at the backbone's size, from the cache where they were decoded before.

    Unreadable files raise an error that names them, unless `skip_bad` leaves them out.
    """
    if len(source) == 0:
        raise VPromptError("There are no images to load.")
    if isinstance(source, np.ndarray):
        array = np.stack([fit(Image.fromarray(image), config) for image in source])
        return Pixels(array, tuple(range(len(array))), _content_digest(array))
    folder = files.cache_folder() / "images" / _cache_key(source, config, skip_bad)
    if not ((folder / "index.json").is_file() and (folder / "pixels.npy").is_file()):
        _decode_into(folder, source, config, skip_bad, progress)
    index = files.read_json(folder / "index.json")
    array = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    return Pixels(array, tuple(index["kept"]), index["digest"])


def _decode_into(
    folder: Path, paths: Sequence[Path], config: DataConfig, skip_bad: bool, progress: Progress
) -> None:
    _, height, width = config.input_size
    array = np.empty((len(paths), height, width, 3), dtype=np.uint8)

    def decode(row: int) -> str | None:
        path = paths[row]
        try:
            array[row] = fit(read_rgb(path), config)
            return None
        except VPromptError:
            raise
        except Exception as error:  # broken files make Pillow raise almost anything
            return f"{path} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"

    results: list[str | None] = []
    with ThreadPoolExecutor(4) as pool, progress.step("decode images", len(paths)) as step:
        for result in pool.map(decode, range(len(paths))):
            results.append(result)
            step.advance()
    bad = [result for result in results if result is not None]
    if bad and not skip_bad:
        listing = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise VPromptError(
            f"{len(bad)} of {len(paths)} images cannot be read: {listing}. Mend or remove them, "
            "or add --skip-bad to leave them out."
        )
    kept = [row for row, result in enumerate(results) if result is None]
    if not kept:
        raise VPromptError(f"None of {len(paths)} images can be read, first: {bad[0]}.")
    array = array[kept] if bad else array
    with files.atomic_folder(folder, overwrite=True) as draft:
        np.save(draft / "pixels.npy", array, allow_pickle=False)
        files.write_json(draft / "index.json", {"kept": kept, "digest": _content_digest(array)})


def _cache_key(paths: Sequence[Path], config: DataConfig, skip_bad: bool) -> str:
    # Name, size and time of change, not content: reading every byte would cost as much as decoding.
    parts = [_CACHE_VERSION, str(config.input_size), config.interpolation, config.crop_mode]
    parts += [str(config.crop_pct), str(skip_bad)]
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            raise VPromptError(f"No image file at {path}, although a list names it.") from None
        parts.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return files.digest(*parts)[:32]


def _content_digest(array: NDArray[np.uint8]) -> str:
    total = hashlib.sha256(f"{array.shape}".encode())
    for image in array:  # one at a time: a whole split in bytes would be a second copy of it
        total.update(np.ascontiguousarray(image).data)
    return total.hexdigest()
