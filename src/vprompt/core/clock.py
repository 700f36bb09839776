"""Clock: how many seconds each stage of a run took."""

from collections.abc import Iterator
from contextlib import contextmanager

from vprompt.core import fleet


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
