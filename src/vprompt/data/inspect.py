"""Inspect: what one image file is, read once: its bytes, its pixels, its true format."""

import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vprompt.core.progress import SILENT, Progress
from vprompt.data.decoding import collected, read_rgb

LOSSY = ("JPEG", "MPO")  # WebP may be either, and nobody ships VTAB in it


@dataclass(frozen=True)
class ImageFacts:
    """One image: SHA-256 of the file and of its RGB pixels with their size, or what is wrong."""

    file: str
    pixels: str
    format: str
    width: int
    height: int
    problem: str | None = None


def inspect_image(path: Path) -> ImageFacts:
    """Read and decode one file as a backbone would see it; never raises."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return ImageFacts("", "", "", 0, 0, error.strerror or type(error).__name__)
    digest = hashlib.sha256(data).hexdigest()
    try:
        with Image.open(io.BytesIO(data)) as opened:
            kind = opened.format or "unknown"
        image = read_rgb(io.BytesIO(data))
    except UnidentifiedImageError:
        return ImageFacts(digest, "", "", 0, 0, "not an image")
    except Exception as error:  # broken files make Pillow raise almost anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return ImageFacts(digest, "", "", 0, 0, text)
    size = f"{image.width} {image.height} ".encode()
    pixels = hashlib.sha256(size + image.tobytes()).hexdigest()
    return ImageFacts(digest, pixels, kind, image.width, image.height)


def inspect_images(paths: Iterable[Path], *, progress: Progress = SILENT) -> dict[Path, ImageFacts]:
    """Inspect every file once, several at a time."""
    unique = list(dict.fromkeys(paths))
    found: dict[Path, ImageFacts] = {}
    with (
        collected() as warned,
        ThreadPoolExecutor(4) as pool,
        progress.step("read images", len(unique)) as step,
    ):

        def inspect(row: int) -> ImageFacts:
            warned.here(row)
            return inspect_image(unique[row])

        for path, facts in zip(unique, pool.map(inspect, range(len(unique))), strict=True):
            found[path] = facts
            step.advance()
    if warned.found:
        row, text = min(warned.found.items())
        progress.say(
            f"warnings on {len(warned.found)} of {len(unique)} images, first {unique[row]}: {text}"
        )
    return found
