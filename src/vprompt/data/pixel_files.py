"""Pixel files: decoded images on their way to the disk and back, a piece at a time.

A split may be larger than memory, so that no step holds more than a few images of it.
"""

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE = 2**22  # bytes


class PixelFile:
    """A `.npy` of images that is written one by one; how many they are is known at the end."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path, self.size, self.count = path, size, 0
        self.file = path.open("wb")
        self._write_head()

    def append(self, image: NDArray[np.uint8]) -> None:
        """Write one image `[height, width, 3]`."""
        self.file.write(np.ascontiguousarray(image).data)
        self.count += 1

    def __enter__(self) -> "PixelFile":
        """Go on writing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write at the beginning how many there are."""
        with self.file:
            if kind is None:
                self.file.seek(0)
                self._write_head()

    def _write_head(self) -> None:
        # NumPy leaves room for a first axis of any length, so the head keeps its own.
        shape = (self.count, *self.size, 3)
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, head)


class PixelList:
    """The same in memory, where there is no cache to write to."""

    def __init__(self) -> None:
        self.images: list[NDArray[np.uint8]] = []

    def append(self, image: NDArray[np.uint8]) -> None:
        """Keep one image."""
        self.images.append(image)


def digest_of_array(array: NDArray[np.uint8]) -> str:
    """Return the digest of images in memory: of their shape and values."""
    total = hashlib.sha256(f"{array.shape}".encode())
    for image in array:  # one at a time: a whole split in bytes would be a second copy of it
        total.update(np.ascontiguousarray(image).data)
    return total.hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the same digest of a file; raises ValueError where it is no such file."""
    with path.open("rb") as file:
        shape = _shape(file)
        total = hashlib.sha256(f"{shape}".encode())
        left = int(np.prod(shape, dtype=object))
        for part in iter(lambda: file.read(_PIECE), b""):
            left -= len(part)
            total.update(part)
    if left:
        raise ValueError("it is not as long as its head says")
    return total.hexdigest()


def _shape(file: Any) -> tuple[int, ...]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
    shape, order, kind = np.lib.format.read_array_header_1_0(file)
    if order or kind != np.uint8 or len(shape) != 4:
        raise ValueError("not images of 8 bits")
    return tuple(shape)


def release(array: NDArray[Any]) -> None:
    """Give the memory of a mapped file back that was read of it; it is read again when needed."""
    held = getattr(array, "_mmap", None)
    if isinstance(held, mmap.mmap) and hasattr(held, "madvise"):
        held.madvise(mmap.MADV_DONTNEED)


def batches(array: NDArray[Any], rows: list[list[int]]) -> Iterator[tuple[list[int], Any]]:
    """Yield rows with a copy of their images, and hold no more of a mapped file than one batch."""
    for some in rows:
        yield some, array[some]
        release(array)
