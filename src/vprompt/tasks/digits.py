"""Digits: scikit-learn's 1,797 handwritten digits of 8 x 8 grey pixels, on disk with the package.

Reference: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998.
"""

import numpy as np
from numpy.typing import NDArray

from vprompt.randomness import numpy_stream
from vprompt.task import SealedSplit, Split, Task

_SIZES = {"train": 800, "val": 200, "test": 797}


def load(*, seed: int = 0) -> Task:
    """Return ten classes in 800 train, 200 val and 797 test images, drawn class by class.

    Pixels go from 0..16 to 0..255 and are repeated over three channels. Every split shows each
    class in its overall proportion, to within an image or two; `seed` decides which images.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    labels = tuple(int(label) for label in data.target)
    whole = Split("all", np.repeat(grey[..., None], 3, axis=3), labels)
    parts = zip(_SIZES, _proportional(data.target, list(_SIZES.values()), seed), strict=True)
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
            "split_seed": seed,
            "sizes": dict(_SIZES),
        },
    )


def _proportional(labels: NDArray[np.int64], sizes: list[int], seed: int) -> list[list[int]]:
    # Rows sorted by their relative rank within their class: any run of them holds the classes in
    # proportion, so exact sizes need no rounding class by class.
    rng = numpy_stream(seed, "digits split")
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.argsort(rank, kind="stable")
    return [sorted(part.tolist()) for part in np.split(order, np.cumsum(sizes)[:-1])]
