"""Calls: what executors are asked to run, what comes back, and what all of them share."""

import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

RETRIES = 2  # after the first try, where a process or a host died
Answers: TypeAlias = Generator[tuple[str, Any], None, None]  # `(key, answer)`, as they come


@dataclass(frozen=True)
class Call:
    """`run(*arguments, *answers)`, with the answers of the calls it needs; `run` is importable."""

    key: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lost:
    """What comes back in place of an answer where process or host died once too often."""

    reason: str


@runtime_checkable
class Executor(Protocol):
    """Runs calls; those that others need come first in the sequence."""

    @property
    def parallel(self) -> bool:
        """Whether calls run beside one another, so that what they share is best done before."""

    def run(self, calls: Sequence[Call], started: Callable[[str], None] = ...) -> Answers:
        """Yield `(key, answer)` for every call; `started` is told which begins, where known."""


def silent(key: str) -> None:
    """Take no notice of a call that begins."""
    del key


def available_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Give this process as many threads as its call has processors."""
    os.environ["OMP_NUM_THREADS"] = str(count)  # read by whatever is loaded after this
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
