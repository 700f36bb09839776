"""Folding: every training image is validated on once, in place of a split that is set aside.

Few images make a validation split that tells nothing and takes what could be learned from. So they
are dealt into folds; for each, a training on the others is judged on it after every epoch. What all
of them say together chooses the epoch, and the thresholds of several classes; then one training on
all images goes as far as that epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.progress import Progress
from vprompt.data import targets
from vprompt.data.targets import Label
from vprompt.data.task import Examples
from vprompt.learning import ending
from vprompt.learning.adapter import Adapter
from vprompt.learning.checkpoint import EpochRecord
from vprompt.learning.goals import Goal
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import Tuned, is_better, tune


@dataclass(frozen=True)
class Folds:
    """Into how many parts images are dealt, and the seed of the deal."""

    count: int
    seed: int = 0

    def rows(self, labels: list[Label]) -> list[list[int]]:
        """Return the rows of every fold, each with its share of every class."""
        if len(labels) < self.count:
            raise VPromptError(
                f"--folds {self.count} needs as many images, and there are {len(labels)}. Use "
                f"--folds {len(labels)} at most, or add images."
            )
        return targets.split_evenly(labels, [1 / self.count] * self.count, self.seed)


@dataclass(frozen=True, eq=False)
class Judgement:
    """What trainings that did not see an image say of it, for all images.

    `history` has a record for every epoch, `said` `[images, outputs]` is of the epoch that was
    `kept`.
    """

    history: list[EpochRecord]
    kept: int
    said: Tensor

    @property
    def record(self) -> EpochRecord:
        """Return what was seen of the epoch that was kept."""
        return next(each for each in self.history if each.epoch == self.kept)


def check(config: TrainConfig, *, halving: bool = False) -> None:
    """Refuse what does not go with folds."""
    if halving:
        raise VPromptError(
            "--halving drops points by one validation split, and --folds has none. Leave one of "
            "the two out."
        )
    if config.patience:
        raise VPromptError(
            f"--folds chooses the epoch by what all folds say of it, so none of them may end early "
            f"by --patience {config.patience}. Leave one of the two out."
        )


def judge(
    build: Callable[[], Adapter],
    train: Examples,
    labels: list[Label],
    folds: Folds,
    goal: Goal,
    config: TrainConfig,
    progress: Progress,
) -> Judgement:
    """Train once for each fold on the others, and judge every epoch on all images together."""
    check(config)
    every = config.model_copy(update={"keep": "best"})  # the last epoch alone is judged otherwise
    whole: dict[int, Tensor] = {}
    first: list[EpochRecord] = []
    losses: dict[int, list[float]] = {}
    for held in folds.rows(labels):
        others = sorted(set(range(len(train))) - set(held))
        said: dict[int, Tensor] = {}
        tuned = tune(
            build(),
            train.subset(others),
            train.subset(held),
            goal.outputs,
            every,
            goal=goal,
            said=said,
            progress=progress,
        )
        # A method may end a training early: judged are the epochs that all folds have.
        first = tuned.history[: len(first) or None]
        for record in tuned.history:
            losses.setdefault(record.epoch, []).append(record.train_loss or 0.0)
        for epoch, logits in said.items():
            whole.setdefault(epoch, torch.zeros(len(train), goal.outputs))[held] = logits
    inside = goal.inside(train).labels
    history = []
    for record in first:
        found = goal.judge(whole[record.epoch], inside)
        loss = sum(losses[record.epoch]) / folds.count if record.epoch else None
        seen = (found.accuracy, found.loss, found.score, found.measure)
        history.append(EpochRecord(record.epoch, record.lr, loss, *seen))
    kept = history[0]
    for record in history[1:]:
        last = config.keep == "last" and record is history[-1]
        if last or (config.keep != "last" and is_better(record, kept, history[0], config.keep)):
            kept = record
    return Judgement(history, kept.epoch, whole[kept.epoch])


def told(tuned: Tuned, found: Judgement, goal: Goal, train: Examples) -> Tuned:
    """Return the training on all images with what the folds say of its epochs."""
    head = goal.chosen(tuned.head, found.said, goal.inside(train).labels)
    own = {record.epoch: record for record in tuned.history}
    history = [
        replace(record, train_loss=own[record.epoch].train_loss, lr=own[record.epoch].lr)
        if record.epoch in own
        else record
        for record in found.history
    ]
    return replace(tuned, head=head, history=history, ended=ending.FOLDS)
