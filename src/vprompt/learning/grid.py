"""Grid: the same training at several settings, in a fleet where that can be, and the best one."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vprompt.core import fleet
from vprompt.core.errors import VPromptError
from vprompt.core.progress import Progress, Step
from vprompt.learning.following import AfterEpoch
from vprompt.learning.halving import Dropped, Halving, rungs
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import Tuned

Train = Callable[[TrainConfig, Progress, AfterEpoch | None], Tuned]


@dataclass(frozen=True, eq=False)
class Reached:
    """What became of one point of a grid: what it learned, or why it did not get to its end."""

    config: TrainConfig
    tuned: Tuned | None = None
    dropped: dict[str, Any] | None = None
    failed: str | None = None

    @property
    def quality(self) -> float | None:
        """What the epoch that was kept reached on validation: accuracy, or the goal's measure."""
        if self.tuned is None:
            return None
        return self.tuned.record(self.tuned.kept_epoch).quality or 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        found: dict[str, Any] = {
            "train": self.config.model_dump(),
            "val_accuracy": self.quality,
        }
        measure = "" if self.tuned is None else self.tuned.history[0].val_measure
        if measure:
            found |= {"val_score": found.pop("val_accuracy"), "val_measure": measure}
        if self.dropped is not None:
            found["dropped"] = self.dropped
        return found if self.failed is None else {**found, "failed": self.failed}


def tune_all(
    points: Sequence[TrainConfig],
    train: Train,
    *,
    steps_per_epoch: Callable[[TrainConfig], int],
    width: int,
    halving: bool,
    progress: Progress,
) -> list[Reached]:
    """Train at every point, `width` in one pass; one that diverges costs the others nothing.

    Raises the error of the first point if all of them fail.
    """
    if halving and len({config.epochs for config in points}) > 1:
        raise VPromptError(
            "--halving compares settings after the same epochs, so a grid of epochs cannot be "
            "halved. Leave epochs out of --grid, or --halving."
        )
    if len(points) == 1:
        return [Reached(points[0], train(points[0], progress, None))]
    plan = rungs(len(points), points[0].epochs) if halving else {}
    if width < 2 and not plan:  # one after the other: the whole machine's memory is for one
        found = [_try(config, train, progress) for config in points]
    else:
        total = sum(config.epochs * steps_per_epoch(config) for config in points)
        with progress.step("tune", total) as step:
            shared = _Shared(progress, step)
            works = [_work(config, train, shared, plan) for config in points]
            found = [
                _reached(config, came)
                for config, came in zip(points, fleet.run(works, width=width), strict=True)
            ]
    if all(each.tuned is None for each in found):
        raise VPromptError(next(each.failed for each in found if each.failed is not None))
    return found


def differing(points: Sequence[TrainConfig]) -> list[str]:
    """Return the names of the settings in which the points of a grid differ."""
    first = dict(points[0])
    return [name for name in first if any(dict(p)[name] != first[name] for p in points)]


def best(found: Sequence[Reached]) -> Reached:
    """Return the point that is best on validation; ties go to the smaller rate."""

    def key(each: Reached) -> tuple[float, float]:
        return each.quality or 0.0, -each.config.lr

    return max((each for each in found if each.tuned is not None), key=key)


def sentences(found: Sequence[Reached]) -> Iterator[str]:
    """Say what every point reached."""
    for each in found:
        if each.tuned is not None:
            yield f"lr {each.config.lr:g}, {each.tuned.sentence}"
        elif each.dropped is not None:
            yield f"lr {each.config.lr:g}, {Dropped(each.dropped)}"
        else:
            yield f"lr {each.config.lr:g} failed: {each.failed}"


def _work(
    config: TrainConfig, train: Train, shared: "_Shared", plan: dict[int, int]
) -> Callable[[], Tuned]:
    return lambda: train(config, shared, Halving(plan) if plan else None)


def _try(config: TrainConfig, train: Train, progress: Progress) -> Reached:
    try:
        return Reached(config, train(config, progress, None))
    except VPromptError as error:
        return _reached(config, error)


def _reached(config: TrainConfig, came: Tuned | Exception) -> Reached:
    if isinstance(came, Tuned):
        return Reached(config, came)
    if isinstance(came, Dropped):
        facts = {k: None if v in (math.inf, -math.inf) else v for k, v in came.facts.items()}
        return Reached(config, dropped=facts)
    if isinstance(came, VPromptError):
        return Reached(config, failed=str(came))
    raise came


@dataclass
class _Shared:
    """The progress of all members as that of one: their steps add up, and nothing is said twice."""

    progress: Progress
    tuning: Step
    said: set[str] = field(default_factory=set)

    @contextmanager
    def step(self, description: str, total: int) -> Iterator[Step]:
        """Open a member's piece of work: training counts, and what is small is not shown."""
        part = _Part(self.tuning if description == "tune" else None, total)
        try:
            yield part
        finally:
            part.advance(part.left)  # of a member that left early

    def say(self, text: str) -> None:
        """Say a line once."""
        if text not in self.said:
            self.said.add(text)
            self.progress.say(text)


class _Part:
    def __init__(self, whole: Step | None, total: int) -> None:
        self.whole, self.left = whole, total

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count; of several members no single note is shown."""
        del note
        self.left -= amount
        if self.whole is not None and amount:
            self.whole.advance(amount)
