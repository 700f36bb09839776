"""Source: what a data set must offer to be cut like VTAB, and how torchvision opens one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vprompt.core.errors import VPromptError

INSTALL = "pip install 'vprompt[data]'"
Example = tuple[Path | Image.Image, int]


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set: TFDS's `keys`, which fix the order, and how to fetch an example.

    `fetch(row)` returns a file, whose bytes are to be copied, or an image, and the label.
    """

    keys: tuple[str, ...]
    fetch: Callable[[int], Example]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set that torchvision has read.

    `deviations` say in what the images or their split differ from VTAB's, and `drawn` that its
    parts are not VTAB's, so that the examples cannot be the official ones.
    """

    name: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    deviations: tuple[str, ...] = ()
    drawn: bool = False


def open_dataset(name: str, root: Path, download: bool, place: str, **options: Any) -> Any:
    """Let torchvision open a data set; what it raises becomes one sentence."""
    try:
        from torchvision import datasets
    except ImportError:
        raise VPromptError(f"torchvision is not installed. Run `{INSTALL}`.") from None
    try:
        return getattr(datasets, name)(str(root), download=download, **options)
    except (RuntimeError, ImportError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        missing = "is not found" in reason or isinstance(error, ImportError)
        if missing:  # a package that reads the files, such as h5py
            raise VPromptError(f"{name} cannot be read: {reason}. Run `{INSTALL}`.") from None
        advice = (
            "Check the connection, or fetch it on another machine with "
            f"`torchvision.datasets.{name}(ROOT, download=True)` and copy {place} to {root}"
            if download
            else f"It should lie at {root / place}; add --download to fetch it"
        )
        raise VPromptError(f"torchvision cannot open {name}: {reason}. {advice}.") from None


def hidden(dataset: Any, attribute: str) -> Any:
    """Return what torchvision keeps for itself: paths, so that bytes can be copied."""
    if not hasattr(dataset, attribute):
        import torchvision

        raise VPromptError(
            f"torchvision {torchvision.__version__} keeps no {attribute!r} in its "
            f"{type(dataset).__name__}. Run `pip install torchvision==0.29.1`."
        )
    return getattr(dataset, attribute)


def files(paths: Sequence[Path | str], labels: Sequence[int], keys: Sequence[str]) -> Part:
    """Return image files."""
    return Part(tuple(keys), lambda row: (Path(paths[row]), int(labels[row])))


def arrays(images: NDArray[np.uint8], labels: Sequence[int]) -> Part:
    """Return images `uint8 [count, height, width, 3]`; TFDS's keys are running numbers."""
    keys = tuple(str(row) for row in range(len(labels)))
    return Part(keys, lambda row: (Image.fromarray(images[row]), int(labels[row])))
