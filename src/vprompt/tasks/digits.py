"""Digits: scikit-learn's 1,797 handwritten digits of 8 x 8 grey pixels, on disk with the package.

Reference: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998.
"""

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np

from vprompt.data.census import Reading
from vprompt.data.task import SealedSplit, Split, Task, split_by_sizes

_SIZES = {"train": 800, "val": 200, "test": 797}


def load(*, split_seed: int = 0) -> Task:
    """Return ten classes in 800 train, 200 val and 797 test images, drawn class by class.

    Pixels go from 0..16 to 0..255 and are repeated over three channels. Every split shows each
    class in its overall proportion, to within an image or two; `split_seed` decides which images.
    """
    images, target = _digits()
    grey = np.round(images * (255 / 16)).astype(np.uint8)
    labels = tuple(int(label) for label in target)
    whole = Split("all", np.repeat(grey[..., None], 3, axis=3), labels)
    rows = split_by_sizes(target, [_SIZES["train"], _SIZES["val"]], split_seed, "digits split")
    parts = zip(_SIZES, rows, strict=True)
    splits = {name: whole.subset(rows, name) for name, rows in parts}
    return Task(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        train=splits["train"],
        val=splits["val"],
        test=SealedSplit(splits["test"]),
        facts={
            "source": "scikit-learn load_digits (test part of UCI optdigits)",
            "licence": "CC BY 4.0",
            "splits": "drawn in proportion to the classes",
            "split_seed": split_seed,
            "sizes": dict(_SIZES),
        },
        reading=Reading(f"drawn in proportion to the classes by seed {split_seed}"),
    )


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images `[count, 8, 8]` and labels that scikit-learn's `load_digits` returns.

    Its file is read where the package lies: to import the package takes a second.
    """
    found = importlib.util.find_spec("sklearn")
    folders = (found and found.submodule_search_locations) or ()
    paths = [Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:  # it lies elsewhere in this release
        from sklearn.datasets import load_digits

        data = load_digits()
        return data.images, data.target
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
