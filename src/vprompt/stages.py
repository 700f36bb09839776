"""Stages: the pieces that the verbs share, each a step of a main line in `flow.py`."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vprompt.core import distributed, registry
from vprompt.core.clock import Clock
from vprompt.core.errors import VPromptError
from vprompt.core.files import cache_folder
from vprompt.core.progress import Progress
from vprompt.core.types import Features
from vprompt.data import sentences, targets
from vprompt.data.census import Reading
from vprompt.data.task import Examples, Task
from vprompt.learning import classifier, ending, fleet_size, folding, goals, grid
from vprompt.learning.adapter import Adapter
from vprompt.learning.checkpoint import Checkpoint, EpochRecord
from vprompt.learning.classifier import Candidate
from vprompt.learning.folding import Folds
from vprompt.learning.following import Following
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import Tuned, tune
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head
from vprompt.models.two_tower import TextPrompt, TwoTower, text_head

_WARNED = 20  # files that the record names, of those that were warned of


@dataclass(frozen=True, eq=False)
class Setting:
    """What both main lines start from: a frozen model and the images it will see."""

    backbone: Backbone
    task: Task
    train: Examples
    val: Examples | None
    config: TrainConfig
    clock: Clock
    progress: Progress
    skip_bad: bool
    keep_states: bool = False
    checkpoints: list[Checkpoint] = field(default_factory=list)
    following: Following = field(default_factory=Following)

    @property
    def goal(self) -> goals.Goal:
        """What training is after: it follows from the task and the weights of its classes."""
        return goals.of(self.task, self.train.labels, self.config.class_weights)

    def sizes(self, test: bool) -> dict[str, Any]:
        """Return how many images there are to validate and, where it is opened, to test on.

        `decoding` is how long the latter take to be read, as far as the others tell.
        """
        sealed, val = self.task.test if test else None, len(self.val or ())
        each = self.clock.seconds.get("images", 0.0) / max(len(self.train) + val, 1)
        looks = len(sealed or ())
        return {"val": val, "test": looks, "decoding": each * looks}

    def promise(self, result: Path) -> None:
        """Note where the result of all training runs will be, before it is written."""
        for checkpoint in self.checkpoints if not self.keep_states else ():
            checkpoint.promise(result)

    def forget_checkpoints(self) -> None:
        """Drop the states of finished training runs, once their result is safe.

        With `keep_states` they stay in the cache, where an equal training run finds itself done,
        until `shelves.forget_finished`, or for a day.
        """
        for checkpoint in self.checkpoints:
            if self.keep_states:
                checkpoint.finish()
            else:
                checkpoint.remove()


def prepare(
    backbone: Backbone,
    task: Task,
    config: TrainConfig | None,
    shots: int | None,
    draw: int,
    *,
    train_on: str = "train",
    digest: str | None = None,
    skip_bad: bool,
    keep_states: bool = False,
    progress: Progress,
    following: Following | None = None,
) -> Setting:
    """Draw the few shots, say what there is, decode the images, and start the clock.

    `digest` is what the training images have to have, where a recipe says so.
    """
    if task.only_test:
        raise VPromptError(
            f"Task {task.name!r} has test images alone, and nothing to learn from. Measure an "
            "artefact on it: `vprompt evaluate TASK --artifact FOLDER`."
        )
    task = task if shots is None else task.few_shot(shots, draw)
    if train_on not in ("train", "trainval"):
        raise VPromptError(f"train_on is `train` or `trainval`, but got {train_on!r}.")
    if train_on == "trainval" and task.val is not None:
        task = replace(task, train=task.train + task.val, val=None)
    if config is not None:
        goals.check(task, config.class_weights)
    for sentence in task.census().sentences():
        progress.say(sentence)
    if config is not None:
        ending.check_patience(config, task.val is not None)
    clock = Clock()
    with clock.stage("images"):
        ready = functools.partial(
            task.examples, config=backbone.data_config, skip_bad=skip_bad, progress=progress
        )
        with distributed.one_at_first():  # the others find the cache filled
            train = ready(task.train)
            val = None if task.val is None else ready(task.val)
        _check_digest(train, digest)
    skipped = len(task.train) - len(train) + (len(task.val or ()) - len(val or ()))
    task = replace(task, reading=_after_decoding(task, {"train": train, "val": val}))
    if skipped:
        progress.say(f"left out {skipped} unreadable images")
        _check_no_class_lost(task, train)
        task = replace(task, facts={**task.facts, "skipped_unreadable": skipped})
    return Setting(
        backbone,
        task,
        train,
        val,
        config or TrainConfig(),
        clock,
        progress,
        skip_bad,
        keep_states,
        following=following or Following(),
    )


def _after_decoding(task: Task, found: Mapping[str, Examples | None]) -> Reading:
    """Return the reading with what decoding added to it: files left out, and files warned of."""
    reading, unreadable, warned = task.reading, [], []
    for split, examples in ((task.train, found["train"]), (task.val, found["val"])):
        if split is None or examples is None or not isinstance(split.images, tuple):
            continue
        names = [path.name for path in split.images]
        kept = set(range(len(names)) if examples.rows is None else examples.rows)
        unreadable += [name for row, name in enumerate(names) if row not in kept]
        warned += [f"{names[row]}: {text}" for row, text in examples.warned]
    if warned:
        more = ", ..." if len(warned) > _WARNED else ""
        listing = "; ".join(warned[:_WARNED])
        reading = reading.noting(f"warnings on {len(warned)} images ({listing}{more})")
    return reading.without("unreadable", unreadable)


def _check_digest(train: Examples, digest: str | None) -> None:
    if digest is not None and digest != f"sha256:{train.digest}":
        raise VPromptError(
            f"The training images are not those of the recipe: their digest is "
            f"sha256:{train.digest}, not {digest}. To combine for them all the same, name the "
            "TASK on the command line, or leave `digest` out of the recipe's `target`."
        )


def _check_no_class_lost(task: Task, train: Examples) -> None:
    rows = range(len(task.train)) if train.rows is None else train.rows
    left = targets.counts(task.train.labels[row] for row in rows)
    lost = sorted(task.train.labels_present - set(left))
    if lost:
        raise VPromptError(
            f"After leaving out unreadable images, no training image of {task.classes[lost[0]]!r} "
            "is left. Mend its files, or remove the class."
        )


def training_defaults(method: str) -> dict[str, Any]:
    """Return the training settings that a method of `adapters/` works best with.

    Its file may hold `training(**settings) -> dict`; what a person gives goes first.
    """
    ask = registry.beside("adapters", method, "training")
    return {} if ask is None else ask()


def check_takes(adapter: Adapter, task: Task) -> None:
    """Refuse a method that learns one class an image where labels are something else."""
    if adapter.classes_alone and task.target != targets.CLASS:
        raise VPromptError(
            f"{type(adapter).__name__} learns one class an image, and task {task.name!r} has the "
            f"target `{task.target}`. Use a method that trains a head, such as --method vpt."
        )


def run_tuning(
    setting: Setting,
    adapter: Adapter,
    config: TrainConfig,
    progress: Progress | None = None,
    after_epoch: grid.AfterEpoch | None = None,
    called: Sequence[str] = (),
    until: int | None = None,
) -> Tuned:
    """Train, with a checkpoint in the cache that the same run finds again.

    Whoever follows knows the training by the task, and by what it is `called` among others. It ends
    with the epoch `until`, where folds have chosen one.
    """
    check_takes(adapter, setting.task)
    adapter.name_classes(setting.task.classes, setting.task.templates)
    progress = progress or setting.progress
    told = {
        "task": setting.task.name,
        "model": setting.backbone.name,
        "method": setting.following.method,
        "train": config.model_dump(),
    }
    with setting.following.watch(progress, (setting.task.name, *called), told) as watch:

        def opened(checkpoint: Checkpoint) -> None:
            setting.checkpoints.append(checkpoint)
            if watch is not None:
                watch.opened(checkpoint)

        def after(history: Sequence[EpochRecord]) -> None:
            for listener in (watch, after_epoch):
                if listener is not None:
                    listener(history)

        return tune(
            adapter,
            setting.train,
            setting.val,
            len(setting.task.classes),
            config,
            goal=goals.of(setting.task, setting.train.labels, config.class_weights),
            until=until,
            checkpoint=cache_folder() / "checkpoints",
            progress=progress,
            after_epoch=after,
            opened=opened,
        )


def grid_points(config: TrainConfig, grid: Mapping[str, Sequence[float]]) -> list[TrainConfig]:
    """Return the training settings at every point of a grid; without a grid, the settings."""
    for name, values in grid.items():
        if not values:
            raise VPromptError(f"The grid names no values for {name!r}. Write `{name}=0.01,0.03`.")
    return [
        TrainConfig.checked({**dict(config), **dict(zip(grid, values, strict=True))})
        for values in itertools.product(*grid.values())
    ]


def tune_best(
    setting: Setting,
    build: Callable[[], Adapter],
    points: Sequence[TrainConfig],
    *,
    fleet: str | int = "auto",
    halving: bool = False,
    folds: Folds | None = None,
) -> tuple[Tuned, TrainConfig, list[dict[str, Any]]]:
    """Train at every point and keep the best on validation; ties go to the smaller lr.

    Also returns what every point reached. `fleet` says how many advance together, as in
    `fleet_size`, and `halving` leaves out on the way what lies behind. With `folds` there is no
    validation split, and every image is judged by trainings that did not see it.
    """
    if folds is not None:
        return _tune_by_folds(setting, build, points, folds)
    if len(points) > 1 and setting.val is None:
        raise VPromptError("A grid is chosen from on validation images, but there are none.")
    if halving and len(points) < 2:
        raise VPromptError("--halving needs a grid to choose from: --grid lr=0.001,0.003,0.01.")

    differing = grid.differing(points)

    def train(config: TrainConfig, progress: Progress, after: grid.AfterEpoch | None) -> Tuned:
        called = [f"{name}={getattr(config, name):g}" for name in differing]
        return run_tuning(setting, build(), config, progress, after, called)

    with setting.clock.stage("tune"):
        width = fleet_size.width(fleet, build, setting.train, points)
        found = grid.tune_all(
            points,
            train,
            steps_per_epoch=lambda config: math.ceil(len(setting.train) / config.batch_size),
            width=width,
            halving=halving,
            progress=setting.progress,
        )
    for sentence in grid.sentences(found) if len(points) > 1 else ():
        setting.progress.say(sentence)
    best = grid.best(found)
    assert best.tuned is not None
    return best.tuned, best.config, [each.to_json() for each in found]


def _tune_by_folds(
    setting: Setting,
    build: Callable[[], Adapter],
    points: Sequence[TrainConfig],
    folds: Folds,
) -> tuple[Tuned, TrainConfig, list[dict[str, Any]]]:
    """Judge every point by folds, and train on all images as far as the best epoch of the best."""
    task, train, goal = setting.task, setting.train, setting.goal
    kept = range(len(task.train)) if train.rows is None else train.rows
    labels = [task.train.labels[row] for row in kept]

    def named() -> Adapter:
        adapter = build()
        adapter.name_classes(task.classes, task.templates)
        return adapter

    check_takes(named(), task)
    with setting.clock.stage("tune"):
        judged = [
            folding.judge(named, train, labels, folds, goal, config, setting.progress)
            for config in points
        ]
        ranks = [
            (each.record.quality or 0.0, -config.lr)
            for each, config in zip(judged, points, strict=True)
        ]
        best = max(range(len(points)), key=ranks.__getitem__)
        found, config = judged[best], points[best]
        tuned = run_tuning(setting, build(), config, until=found.kept)
    reached = [
        grid.Reached(point, replace(tuned, history=each.history, kept_epoch=each.kept))
        for each, point in zip(judged, points, strict=True)
    ]
    for sentence in grid.sentences(reached) if len(points) > 1 else ():
        setting.progress.say(sentence)
    told = folding.told(tuned, found, goal, train)
    return told, config, [each.to_json() for each in reached]


def untuned(setting: Setting, plain: Features, adapter: Adapter) -> dict[str, Candidate]:
    """Return what a learned prompt is measured beside: no prompt, and of a CLIP zero-shot."""
    with setting.clock.stage("head"):
        baseline = setting.goal.closed_form(plain, setting.train.labels)
    found: dict[str, Candidate] = {"no prompt": (None, baseline)}
    return (
        found if adapter.text() is None else {"zero-shot": (None, zero_shot_head(setting)), **found}
    )


def zero_shot_head(setting: Setting) -> Head:
    """Return the head that the task's class names and own template make, without any prompt."""
    assert isinstance(setting.backbone, TwoTower)
    templates = setting.task.templates or sentences.GENERIC
    return text_head(setting.backbone, setting.task.classes, TextPrompt(templates))


def plain_features(setting: Setting) -> Features:
    """Return the prompt-free features of the training images."""
    with setting.clock.stage("head"):
        return classifier.features_of(
            setting.backbone, None, setting.train, precision=setting.config.precision
        )
