"""Threads: small work on one of them, and waiting that leaves the cores to others.

torch's OpenMP threads spin at the end of every operation until the last one is there. Beside
another busy process that last one may not be running, and thousands of small operations then take
ten times as long. Nothing here imports torch before it is needed.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def wait_quietly() -> None:
    """Let threads that wait sleep, unless the person has said how they wait.

    It has to be said before torch is loaded: OpenMP reads its settings once.
    """
    os.environ |= quiet(os.environ)


def quiet(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process to be started in which waiting threads sleep.

    What the person has said, in `given`, stays as it is.
    """
    said = {key: given[key] for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if key in given}
    return said or {"OMP_WAIT_POLICY": "PASSIVE"}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: what follows is many small operations."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of many small operations run on one thread."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with one_thread():
            return function(*args, **kwargs)

    return run
