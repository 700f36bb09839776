"""Randomness: one seed becomes independent, named streams; nothing global is ever seeded."""

import numpy as np
import torch

from vprompt.core.files import digest


def stream(seed: int, purpose: str) -> torch.Generator:
    """Return a generator that depends on the seed and on what it is for.

    Drawing more numbers for one purpose never changes those for another.
    """
    return torch.Generator().manual_seed(int(digest(str(seed), purpose)[:15], 16))


def numpy_stream(seed: int, purpose: str) -> np.random.Generator:
    """Return NumPy's counterpart of `stream`."""
    return np.random.default_rng(int(digest(str(seed), purpose)[:15], 16))
