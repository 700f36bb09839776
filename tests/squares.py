"""Squares: a task that a narrow model learns in a few steps, for tests of methods that read."""

import numpy as np


def squares(classes, train, val):
    """Return a task of coloured squares, so many of each of three colours, and 4 to test on."""
    from vprompt.data.task import SealedSplit, Split, Task

    rng = np.random.default_rng(0)

    def split(name, count):
        labels = tuple(range(3)) * count
        pixels = rng.integers(0, 120, (len(labels), 32, 32, 3))
        for row, label in enumerate(labels):
            pixels[row, 8:24, 8:24, label] += 130
        return Split(name, pixels.astype(np.uint8), labels)

    test = SealedSplit(split("test", 4))
    return Task("squares", classes, split("train", train), split("val", val), test)
