"""Threads: small work on one, large work on several side by side, and waiting that costs nothing.

torch's OpenMP threads spin at the end of every operation until the last one is there. Beside
another busy process that last one may not be running, and thousands of small operations then take
ten times as long. Nothing here imports torch before it is needed.
"""

import functools
import os
import threading
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
    """Return the environment of a process to be started in which threads that wait soon sleep.

    They spin for some microseconds first: the next operation of a training step mostly comes within
    that time, and to wake a thread that sleeps costs a fifth of such a step. What the person has
    said, in `given`, stays as it is.
    """
    said = {key: given[key] for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if key in given}
    return said or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


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


class Shares:
    """Cores that a few threads share, each with as many as any other.

    Every thread of torch's remembers how many cores it computes on. A few threads on a core each
    do more than one thread on all of them, which waits at every operation for the slowest core.
    Each thread calls `take` first, and whoever started them calls `settle` afterwards.
    """

    def __init__(self, threads: int) -> None:
        import torch

        self.threads, self.cores = threads, torch.get_num_threads()
        self._all_there = threading.Barrier(threads + 1)

    def take(self) -> None:
        """Compute on this thread's share from now on."""
        import torch

        # A thread's first look at the number takes over what was last set anywhere, and would
        # undo a number that was set before it.
        torch.get_num_threads()
        torch.set_num_threads(max(1, self.cores // self.threads))
        self._all_there.wait()

    def settle(self) -> None:
        """Wait until all have their share, and have threads to come start as they did before."""
        import torch

        self._all_there.wait()
        torch.set_num_threads(self.cores)
