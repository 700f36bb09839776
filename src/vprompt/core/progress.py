"""Progress: how a stage tells whoever called it how far it is; silent unless someone listens."""

import contextlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class Step(Protocol):
    """One piece of work that is under way."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units as done; `note` is shown beside the bar."""


@runtime_checkable
class Progress(Protocol):
    """Whoever shows progress; the command line shows bars, a library call shows nothing."""

    def step(self, description: str, total: int) -> contextlib.AbstractContextManager[Step]:
        """Open a piece of work of `total` units."""

    def say(self, text: str) -> None:
        """Show one line that the person should read."""


class Silent:
    """Shows nothing: what a library call uses unless it is given something else."""

    @contextlib.contextmanager
    def step(self, description: str, total: int) -> Iterator[Step]:
        """Open a piece of work and show nothing of it."""
        del description, total
        yield self

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""


SILENT: Progress = Silent()
