"""Logged: progress as lines of text, where standard error is a file or a pipe and no window."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vprompt.core.forecast import words

EVERY = 30.0  # seconds between two lines of one step
WORTH = 2.0  # seconds from which on the end of a step is worth a line


class Lines:
    """Writes a line for every `EVERY` seconds of a step, and one when a longer step is over."""

    def __init__(self, printable: Callable[[str], str]) -> None:
        self.printable = printable

    @contextmanager
    def step(self, description: str, total: int) -> Iterator["_Count"]:
        """Count a piece of work."""
        count = _Count(self, description, total)
        yield count
        spent = time.monotonic() - count.began
        if spent >= WORTH:
            self.say(f"{description}: {count.done:,} of {total:,} in {words(spent)}")

    def say(self, text: str) -> None:
        """Write a line."""
        print(self.printable(text), file=sys.stderr, flush=True)


class _Count:
    def __init__(self, lines: Lines, description: str, total: int) -> None:
        self.lines, self.description, self.total = lines, description, total
        self.done, self.began = 0, time.monotonic()
        self.written = self.began

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count, and write a line if the last one is long ago."""
        self.done += amount
        now = time.monotonic()
        if now - self.written < EVERY or not self.done:
            return
        self.written = now
        left = (now - self.began) * max(self.total - self.done, 0) / self.done
        noted = f", {note}" if note else ""
        self.lines.say(
            f"{self.description}: {self.done:,} of {self.total:,}{noted}, about {words(left)} left"
        )
