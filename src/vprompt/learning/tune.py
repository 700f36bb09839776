"""Tune: the only training loop; adapter and head together, judged on the validation split.

The order of images and every dropout mask follow from the seed and the epoch alone, so a run that
was stopped continues with the same bits as one that was not.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.core import distributed
from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.precision import resolve
from vprompt.core.progress import SILENT, Progress, Step
from vprompt.core.randomness import stream
from vprompt.data import augment
from vprompt.data.task import Examples
from vprompt.learning import ending, goals, schedule
from vprompt.learning.adapter import Adapter, FeatureAdapter, Training
from vprompt.learning.checkpoint import Checkpoint, EpochRecord, restore
from vprompt.learning.classifier import (
    Classifier,
    batch_features,
    compute_features,
    feature_examples,
    start_features,
    start_head,
)
from vprompt.learning.optimizing import optimizer_of
from vprompt.learning.refitting import refitted
from vprompt.learning.train_config import TrainConfig
from vprompt.models import company, prefix
from vprompt.models.heads import Head


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained adapter and head, the curve that led there, and which epoch was kept.

    `ended` is a reason of `ending`. `checkpoint` holds the run's state until the result is saved
    elsewhere. `refitted` says that the head was fitted anew after training.
    """

    adapter: Adapter
    head: Head
    history: list[EpochRecord]
    kept_epoch: int
    start_head: Head
    checkpoint: Checkpoint
    ended: str = ending.ALL_EPOCHS
    refitted: bool = False

    def record(self, epoch: int) -> EpochRecord:
        """Return what was measured after an epoch."""
        return next(record for record in self.history if record.epoch == epoch)

    @property
    def sentence(self) -> str:
        """Say which epoch was kept and why, and where training ended before its last epoch."""
        return self._kept + self._end + ("; the head was fitted anew" if self.refitted else "")

    @property
    def _kept(self) -> str:
        kept, last = self.record(self.kept_epoch), self.history[-1]
        if not kept.shown:
            return f"kept the last epoch ({self.kept_epoch}); no validation images to choose by"
        what = "the start" if self.kept_epoch == 0 else f"epoch {self.kept_epoch}"
        text = f"kept {what}, {kept.shown} on validation"
        if last.shown and self.kept_epoch != last.epoch:
            text += f" (last epoch {last.shown})"
        return text

    @property
    def _end(self) -> str:
        if self.ended == ending.FOLDS:
            return "; judged by folds, every image once, and then trained on all of them"
        if self.ended != ending.PATIENCE:
            return ""
        age = ending.age_of_least_loss(self.history)
        return (
            f"; training ended with epoch {self.history[-1].epoch}, because its least validation "
            f"loss was {age} epoch{'s' * (age > 1)} old"
        )


@dataclass(eq=False)
class _Loop:
    """The state of one training run between two epochs; all of it goes into a checkpoint."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    goal: goals.Goal
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    said: dict[int, Tensor] | None = None

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that training changes, by name."""
        return self.classifier.state()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Return what the head says now, on the CPU."""
        return self.classifier.logits(features.to(self.classifier.adapter.backbone.device)).cpu()


def tune(
    adapter: Adapter,
    train: Examples,
    val: Examples | None,
    num_classes: int,
    config: TrainConfig,
    *,
    goal: goals.Goal | None = None,
    until: int | None = None,
    said: dict[int, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: Progress = SILENT,
    after_epoch: Callable[[Sequence[EpochRecord]], None] | None = None,
    opened: Callable[[Checkpoint], None] | None = None,
) -> Tuned:
    """Train adapter and head, and return the better of the start and every epoch.

    `goal` is what training is after, one class an image unless told. "Better" is accuracy on `val`,
    then its loss; with `config.keep="least_loss"` it is the loss, among epochs that are no less
    accurate than the start. `"last"` keeps the last epoch as the literature does, and so does a run
    without `val`. With `config.patience` training ends once the least loss on `val` is so many
    epochs old, whatever is kept. With `checkpoint`, a folder, the state is written there after
    every epoch, and the same run started again continues from it, until the caller has saved the
    result and calls `Tuned.checkpoint.remove`. `after_epoch` sees the history after every epoch,
    also of a run that continues; what it raises ends training. `opened` is told of the state, which
    a training that fails leaves behind as well. In a fleet the images go through the backbone with
    those of the other members. Training ends with the epoch `until`, its rates as if it went on,
    and `said` is filled with what is said of `val` after every epoch.

    Raises VPromptError when the loss is not finite, naming the step.
    """
    ending.check_patience(config, val is not None)
    if not len(train):
        raise VPromptError("There are no training images, so nothing can be learned.")
    if distributed.size() > 1 and not adapter.shares_steps:
        raise VPromptError(
            f"{type(adapter).__name__} reads more of a step than its gradient, so several "
            "processes cannot share it out. Do without torchrun."
        )
    goal = goals.OneClass(num_classes) if goal is None else goal
    train, val = goal.inside(train), None if val is None else goal.inside(val)
    pixels, cut = train, config.augment != "none"
    if isinstance(adapter, FeatureAdapter):
        once = feature_examples(adapter, train, config)
        assert once is not None
        train, val = once, feature_examples(adapter, val, config)
    elif config.epochs > 1:
        kept, val = prefix.keep(
            adapter.backbone,
            [None if cut else train, val],
            adapter.constant_blocks,
            precision=config.precision,
            limit=config.prefix_cache,
            batch_size=config.batch_size,
            progress=progress,
        )
        train = kept or train
    adapter.begin(train, config)
    first_head, whitening = start_head(adapter, train, goal, config)
    classifier = Classifier(adapter, first_head, whitening)
    if not any(p.requires_grad for p in classifier.parameters()):
        config = config.model_copy(update={"epochs": 0})
    loop = _Loop(classifier, optimizer_of(classifier, config), goal, said=said)
    if adapter.shares_passes:
        company.join(adapter.backbone, adapter.prompt(), moves=adapter.moves_tokens)
    store = Checkpoint(checkpoint, identity=_identity(loop, train, val, config, until))
    if opened is not None:
        opened(store)
    resumed = store.load(loop)
    distributed.copy_from_first(loop.state().values())
    if not resumed:
        _finish_epoch(loop, 0, None, 0.0, val, config)
    steps = math.ceil(len(train) / config.batch_size)
    training = _training(loop, train, val, config, steps)
    training.epoch = done = loop.history[-1].epoch
    with progress.step("tune", steps * config.epochs) as step:
        step.advance(steps * done, _note(loop))
        if after_epoch is not None:
            after_epoch(loop.history)
        while (ended := ending.reason(loop.history, config, adapter.finished(), until)) is None:
            epoch = loop.history[-1].epoch + 1
            seen = train
            if cut:
                data_config = adapter.backbone.data_config
                seen = augment.varied(config.augment, pixels, data_config, config.seed, epoch)
            loss, rate = _train_epoch(loop, training, seen, epoch, config, step)
            _check_finite(loop, epoch, config)
            _finish_epoch(loop, epoch, loss, rate, val, config)
            step.advance(0, _note(loop))
            store.save(loop)
            if after_epoch is not None:
                after_epoch(loop.history)
    adapter.end(training)
    restore(classifier, loop.best)
    fitted = None
    if loop.best_epoch:
        fitted = refitted(classifier, goal, train, val, config, loop.logits)
    head = goal.outside(fitted or classifier.head())
    if val is not None and goal.chooses:
        found = compute_features(adapter, val, config)
        logits = loop.logits(found) if fitted is None else fitted.logits(found).float()
        head = goal.chosen(head, logits, val.labels)
    start, is_new = goal.outside(first_head), fitted is not None
    return Tuned(adapter, head, loop.history, loop.best_epoch, start, store, ended, is_new)


def _training(
    loop: _Loop, train: Examples, val: Examples | None, config: TrainConfig, steps: int
) -> Training:
    """Return what the adapter's hooks may see and do."""

    def logits(
        examples: Examples, rows: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        return _logits(loop.classifier, examples, rows, config, generator)

    def loss(examples: Examples, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        return loop.goal.loss(*logits(examples, rows, generator))

    return Training(
        train,
        val,
        loop.optimizer,
        loss,
        logits,
        config.seed,
        config.batch_size,
        config.epochs,
        steps,
        criterion=loop.goal.loss,
    )


def _logits(
    classifier: Classifier,
    examples: Examples,
    rows: Tensor,
    config: TrainConfig,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    inputs, labels = next(examples.batches(len(rows), rows))
    features = batch_features(classifier.adapter, inputs, config, generator)
    return classifier.logits(features, generator=generator), labels.to(features.device)


def _train_epoch(
    loop: _Loop, training: Training, seen: Examples, epoch: int, config: TrainConfig, step: Step
) -> tuple[float, float]:
    """Train on the images as they are `seen` in this epoch; return the mean loss, the last rate."""
    whole, adapter, total = training.train, loop.classifier.adapter, 0.0
    order = torch.randperm(len(seen), generator=stream(config.seed, f"order, epoch {epoch}"))
    dropout = stream(config.seed, f"dropout, epoch {epoch}")
    training.epoch, training.step = epoch, (epoch - 1) * training.steps_per_epoch
    training.train = seen
    adapter.begin_epoch(training)
    for rows in order.split(config.batch_size):
        now = functools.partial(
            schedule.rate, config, step=training.step, steps_per_epoch=training.steps_per_epoch
        )
        for group in loop.optimizer.param_groups:
            group["lr"] = now(group["peak_lr"])
        adapter.begin_step(training)
        value = _backward(loop, seen, rows, config, dropout)
        if not math.isfinite(value):
            raise VPromptError(
                f"The loss became {value} at step {training.step} (epoch {epoch}). Nothing was "
                f"kept. Use a smaller --lr (it was {config.lr:g}), or --precision fp32."
            )
        adapter.after_backward(training)
        if config.clip_grad:
            nn.utils.clip_grad_norm_(_optimised(loop), config.clip_grad)
        loop.optimizer.step()
        total += value * len(rows)
        training.step += 1
        step.advance(1)
    training.train = whole
    adapter.end_epoch(training)
    return total / len(seen), now(config.lr)


def _backward(
    loop: _Loop, train: Examples, rows: Tensor, config: TrainConfig, dropout: torch.Generator
) -> float:
    """Leave the gradient of a batch at the parameters, and return its loss."""
    own, share = distributed.part(rows)
    drawn = dropout.get_state()
    with company.steps():
        logits, labels = _logits(loop.classifier, train, own, config, dropout)
    distributed.check_no_draw(drawn, dropout)
    loss = loop.goal.loss(logits, labels)
    extra = loop.classifier.adapter.extra_loss(logits, own)
    loop.optimizer.zero_grad(set_to_none=True)
    company.backward(share * (loss if extra is None else loss + extra))
    return distributed.add_up(share * loss, _optimised(loop))


def _optimised(loop: _Loop) -> list[Tensor]:
    return [p for group in loop.optimizer.param_groups for p in group["params"]]


def _check_finite(loop: _Loop, epoch: int, config: TrainConfig) -> None:
    """Stop where the very last step of an epoch exploded, which no loss has seen yet."""
    for name, value in loop.state().items():
        if not torch.isfinite(value).all():
            raise VPromptError(
                f"{name!r} is not finite after the last step of epoch {epoch}. Nothing was kept. "
                f"Use a smaller --lr (it was {config.lr:g}), or --precision fp32."
            )


def _finish_epoch(
    loop: _Loop,
    epoch: int,
    loss: float | None,
    rate: float,
    val: Examples | None,
    config: TrainConfig,
) -> None:
    """Judge the epoch on validation and remember its parameters if none were better."""
    judged = None
    last = epoch in (0, config.epochs) or loop.classifier.adapter.finished()
    if val is not None and (config.keep != "last" or config.patience or last):
        look = compute_features if epoch else start_features
        logits = loop.logits(look(loop.classifier.adapter, val, config))
        judged = loop.goal.judge(logits, val.labels)
        if loop.said is not None:
            loop.said[epoch] = logits
    record = EpochRecord(epoch, rate, loss, None, None)
    if judged is not None:
        seen = (judged.accuracy, judged.loss, judged.score, judged.measure)
        record = EpochRecord(epoch, rate, loss, *seen)
    if config.keep == "last" or val is None or epoch == 0:
        better = True
    else:
        before = next(r for r in loop.history if r.epoch == loop.best_epoch)
        better = is_better(record, before, loop.history[0], config.keep)
    loop.history.append(record)
    if better:
        loop.best = {name: value.clone() for name, value in loop.state().items()}
        loop.best_epoch = epoch


def is_better(now: EpochRecord, before: EpochRecord, start: EpochRecord, keep: str) -> bool:
    """Compare by quality, then loss; or by loss, among epochs no worse than the start.

    Where the images do not define a quality, they never do, and the loss alone compares.
    """
    assert now.val_loss is not None and before.val_loss is not None
    qualities = [record.quality or 0.0 for record in (now, before, start)]
    if keep == "least_loss":
        return qualities[0] >= qualities[2] and now.val_loss < before.val_loss
    return (qualities[0], -now.val_loss) > (qualities[1], -before.val_loss)


def _identity(
    loop: _Loop, train: Examples, val: Examples | None, config: TrainConfig, until: int | None
) -> dict[str, Any]:
    """Return everything that determines the run; its checkpoint is named after it."""
    return {
        "config": config.model_dump(),
        "train": train.digest,
        "val": val.digest if val is not None else None,
        "start": digest(*(v.cpu().numpy().tobytes() for v in loop.state().values())),
        "adapter": loop.classifier.adapter.identity(),
        "precision": resolve(config.precision, loop.classifier.adapter.backbone.device),
        "backbone": loop.classifier.adapter.backbone.fingerprint,
        "data_config": loop.classifier.adapter.backbone.data_config.to_json(),
        **loop.goal.identity(),
        **({} if until is None else {"until": until}),
    }


def _note(loop: _Loop) -> str:
    shown = loop.history[-1].shown
    return f"val {shown}" if shown else ""
