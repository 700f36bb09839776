"""Clock: how many seconds each stage of a run took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from vprompt.core import fleet

_BEGAN: list[float] = []  # when the command line began, if it is what runs


def begin() -> None:
    """Note that a command begins now, so that what it announces counts its start-up."""
    _BEGAN[:] = [time.perf_counter()]


def since_begin() -> float:
    """Return the seconds since a command began; none in a program of somebody else's."""
    return time.perf_counter() - _BEGAN[0] if _BEGAN else 0.0


class Clock:
    """Seconds per stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        began = fleet.now()
        try:
            yield
        finally:
            spent = fleet.now() - began
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)
