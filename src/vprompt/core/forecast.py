"""Forecast: how long work will take, and what is said while it runs where that turns out wrong."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from vprompt.core import clock
from vprompt.core.progress import Progress, Step

APART = 1.3  # from this ratio on, a new time is said
WORTH = 5.0  # seconds of difference below which nothing is said
_FIRST = 3.0  # seconds of a step after which it tells something
_END = 0.25  # of a command's start-up: what tables, record, report and the end of the program take
Now = Callable[[], float]


@dataclass(frozen=True)
class Part:
    """The seconds that steps of one description are expected to take, and their units in all."""

    seconds: float
    units: int


@dataclass(frozen=True)
class Estimate:
    """What will be done, and for how long: `parts` by the name of their steps, `other` beside them.

    `facts` stands behind `what` in the sentence.
    """

    what: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    other: float = 0.0
    facts: str = ""

    @property
    def seconds(self) -> float:
        """Seconds from now on; of a command, to its very end."""
        counted = sum(part.seconds for part in self.parts.values()) + self.other
        return counted + _END * clock.since_begin()

    def __str__(self) -> str:
        """Say how long it takes, with the start-up of a command."""
        spent = clock.since_begin()
        whole = f" more, {words(self.seconds + spent)} in all" if spent else ""
        return f"about {words(self.seconds)}{whole}: {self.what}{self.facts}"

    def announce(self, progress: Progress) -> Progress:
        """Say it, and return a progress that says a new time where this one turns out wrong."""
        progress.say(str(self))
        return Forecast(progress, self)


@dataclass(eq=False)
class Forecast:
    """Progress that compares the time that steps take with what was announced."""

    progress: Progress
    estimate: Estimate
    now: Now = time.monotonic
    announced: float = 0.0
    began: float = 0.0
    pace: float = 1.0  # how much longer than expected steps took so far
    left: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin to count."""
        self.announced, self.began = self.estimate.seconds, self.now()
        self.left = {name: part.seconds for name, part in self.estimate.parts.items()}

    @contextlib.contextmanager
    def _opened(self, description: str, total: int) -> Iterator[Step]:
        part = self.estimate.parts.get(description)
        with self.progress.step(description, total) as step:
            if part is None or not part.units or not total:
                yield step
                return
            expected = part.seconds * min(1.0, total / part.units)
            self.left[description] = max(0.0, self.left[description] - expected)
            yield _Watched(step, self, total, expected, self.now())

    def step(self, description: str, total: int) -> AbstractContextManager[Step]:
        """Open a piece of work, and watch it where it was part of the estimate."""
        return self._opened(description, total)

    def say(self, text: str) -> None:
        """Show one line."""
        self.progress.say(text)

    def look(self, step: "_Watched") -> None:
        """Say how long it will take by what is done of a step, if that is news."""
        now = self.now()
        spent, share = now - step.began, step.share
        if spent < _FIRST or not 0.05 <= share < 1 or step.expected <= 0:
            return
        projected = spent / share
        self.pace = projected / step.expected
        after = self.pace * (sum(self.left.values()) + self.estimate.other)
        more = projected - spent + after
        whole = now - self.began + more
        if abs(whole - self.announced) < WORTH:
            return
        ratio = whole / max(self.announced, 1e-9)
        if 1 / APART < ratio < APART:
            return
        self.announced = whole
        what = "longer" if ratio > 1 else "less"
        started = clock.since_begin()
        in_all = f", {words(started + more)} in all" if started else ""
        self.progress.say(f"it takes {what} than announced: about {words(more)} more{in_all}")


@dataclass(eq=False)
class _Watched:
    """A step whose time is compared with what was expected of it."""

    step: Step
    forecast: Forecast
    total: int
    expected: float
    began: float
    done: int = 0

    @property
    def share(self) -> float:
        """How much of the step is done."""
        return self.done / self.total

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count, and look at the time; what was done in an earlier run is not counted."""
        self.step.advance(amount, note)
        if not self.done and amount > 0 and self.forecast.now() - self.began < 0.05 < amount - 1:
            self.expected *= max(0, self.total - amount) / self.total
            self.total = max(1, self.total - amount)
            return
        self.done += amount
        self.forecast.look(self)


def words(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
