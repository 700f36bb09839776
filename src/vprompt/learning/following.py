"""Following: whoever watches a training is told of every epoch, and changes nothing of it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vprompt.core import distributed, fleet, registry
from vprompt.core.errors import VPromptError
from vprompt.core.progress import Progress
from vprompt.learning import logs
from vprompt.learning.checkpoint import Checkpoint, EpochRecord

AfterEpoch = Callable[[Sequence[EpochRecord]], None]


@dataclass(frozen=True)
class Seen:
    """What a callback is told after an epoch; epoch 0 is the start, before any step.

    `run` is the name of the training and the same when it is continued, `settings` what it is
    trained with. `seconds` is how long the epoch took, None of the start and of epochs that were
    `resumed`: an earlier process did them, and may have told of them.
    """

    run: str
    settings: Mapping[str, Any]
    record: EpochRecord
    seconds: float | None = None
    resumed: bool = False

    @property
    def epoch(self) -> int:
        """The number of the epoch."""
        return self.record.epoch

    @property
    def numbers(self) -> dict[str, float]:
        """Every number that is known of the epoch, by name: `lr`, `train_loss`, `val_loss`, ..."""
        return {
            name: value
            for name, value in self.row().items()
            if name != "epoch" and isinstance(value, int | float)
        }

    def row(self) -> logs.Row:
        """Return all that is known of the epoch, by name, with None where nothing is."""
        plain: logs.Row = {}
        for name, value in self.record.to_json().items():
            plain |= value if isinstance(value, Mapping) else {name: value}
        return {**plain, "seconds": None if self.seconds is None else round(self.seconds, 3)}


Callback = Callable[[Seen], None]


@dataclass(frozen=True)
class Following:
    """Who follows the trainings of a verb by a method: callbacks, and logs in a folder."""

    verb: str = ""
    method: str = ""
    callbacks: Sequence[Callback] = ()
    kinds: Sequence[str] = ()
    folder: Path | None = None

    @classmethod
    def checked(
        cls,
        verb: str,
        method: str,
        callbacks: Sequence[Callback],
        kinds: Sequence[str],
        folder: Path | str | None,
    ) -> "Following":
        """Return who follows; raises VPromptError, before the work, where a log cannot be."""
        return cls(verb, method, tuple(callbacks), tuple(kinds), logs.check(kinds, folder))

    @contextlib.contextmanager
    def watch(
        self, progress: Progress, called: Sequence[str], settings: Mapping[str, Any]
    ) -> Iterator["Watch | None"]:
        """Yield what is told of a training's epochs, or None where nobody follows."""
        if not (self.callbacks or self.kinds) or not distributed.is_first():
            yield None
            return
        name = registry.parse(self.method).name if self.method else ""
        watch = Watch(self, progress, (self.verb, name, *called), settings)
        try:
            yield watch
        finally:
            watch.close()


@dataclass(eq=False)
class Watch:
    """Follows one training; called with its history after every epoch."""

    following: Following
    progress: Progress
    words: tuple[str, ...]
    settings: Mapping[str, Any]
    run: str = ""
    written: list[logs.Log] = field(default_factory=list)
    told: int = 0
    since: float = 0.0

    def opened(self, checkpoint: Checkpoint) -> None:
        """Name the training after what determines it, as its state is."""
        self.run = logs.folder_name(*self.words, checkpoint.name[:8])

    def __call__(self, history: Sequence[EpochRecord]) -> None:
        """Tell of the epochs that were not told of.

        Raises VPromptError where a log cannot be begun; one that fails later is given up.
        """
        now, first = fleet.now(), not self.told
        taken, resumed = None if first else now - self.since, first and len(history) > 1
        fresh = [
            Seen(self.run, self.settings, record, taken, resumed) for record in history[self.told :]
        ]
        self.told, self.since = len(history), now
        if first:
            self._begin(fresh)
        for log in () if first else list(self.written):
            for seen in fresh:
                self._add(log, {**seen.row(), "time": logs.now()})
        for callback in self.following.callbacks:
            for seen in fresh:
                callback(seen)
        self.since = fleet.now()

    def close(self) -> None:
        """Close the logs."""
        for log in self.written:
            with contextlib.suppress(OSError):
                log.close()

    def _begin(self, fresh: Sequence[Seen]) -> None:
        if self.following.folder is None:
            return
        place = self.following.folder / self.run
        when = logs.now() if len(fresh) == 1 else None
        try:
            self.written = logs.start(self.following.kinds, place, self.settings)
            for log in self.written:
                log.begin([{**seen.row(), "time": when} for seen in fresh])
        except OSError as error:
            raise VPromptError(
                f"The log {place} cannot be written: {error.strerror or error}. Choose another "
                "--log-dir, or do without --log."
            ) from error

    def _add(self, log: logs.Log, row: logs.Row) -> None:
        try:
            log.add(row)
        except (OSError, VPromptError) as error:
            self.written.remove(log)
            self.progress.say(
                f"the log {self.following.folder}/{self.run} could not be written ({error}); "
                "training goes on without it"
            )
