"""Tune: the only training loop; adapter and head together, judged on the validation split.

The order of images and every dropout mask follow from the seed and the epoch alone, so a run that
was stopped continues with the same bits as one that was not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.adapter import Adapter, NoAdapter
from vprompt.checkpoint import Checkpoint, EpochRecord
from vprompt.errors import VPromptError
from vprompt.files import digest
from vprompt.heads import Head, closed_form
from vprompt.precision import autocast, resolve
from vprompt.progress import SILENT, Progress, Step
from vprompt.randomness import stream
from vprompt.task import Examples
from vprompt.train_config import TrainConfig
from vprompt.types import Features, Images


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained adapter and head, the curve that led there, and which epoch was kept.

    `checkpoint` holds the run's state until the result is saved elsewhere.
    """

    adapter: Adapter
    head: Head
    history: list[EpochRecord]
    kept_epoch: int
    start_head: Head
    checkpoint: Checkpoint

    def record(self, epoch: int) -> EpochRecord:
        """Return what was measured after an epoch."""
        return next(record for record in self.history if record.epoch == epoch)

    @property
    def sentence(self) -> str:
        """Say which epoch was kept and why."""
        kept, last = self.record(self.kept_epoch), self.history[-1]
        if kept.val_accuracy is None:
            return f"kept the last epoch ({self.kept_epoch}); no validation images to choose by"
        what = "the start" if self.kept_epoch == 0 else f"epoch {self.kept_epoch}"
        text = f"kept {what}, {100 * kept.val_accuracy:.1f} % on validation"
        if last.val_accuracy is not None and self.kept_epoch != last.epoch:
            text += f" (last epoch {100 * last.val_accuracy:.1f} %)"
        return text


class Classifier(nn.Module):
    """An adapter and a linear head: what is trained.

    The head is trained in the coordinates of `whitening`. A closed-form head is large along
    directions in which features hardly vary, and one learning rate for all coordinates destroyed
    it within an epoch; after whitening one rate fits.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, adapter: Adapter, head: Head, whitening: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.adapter, device = adapter, adapter.backbone.device
        mean, whiten = whitening
        self.register_buffer("mean", mean.to(device))
        self.register_buffer("whiten", whiten.to(device))
        weight = torch.linalg.solve(whiten.double(), head.weight.double().T).T.float()
        bias = head.bias.float() + head.weight.float() @ mean
        self.weight = nn.Parameter(weight.clone().contiguous().to(device))
        self.bias = nn.Parameter(bias.clone().to(device))

    def logits(self, features: Features) -> Tensor:
        """Return `[batch, classes]` in fp32."""
        return functional.linear(
            (features.float() - self.mean) @ self.whiten, self.weight, self.bias
        )

    def head(self) -> Head:
        """Return the head as a plain linear layer on features."""
        weight = (self.weight.detach() @ self.whiten).cpu()
        return Head(weight, self.bias.detach().cpu() - weight @ self.mean.cpu())


@dataclass(eq=False)
class _Loop:
    """The state of one training run between two epochs; all of it goes into a checkpoint."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def trainable(self) -> dict[str, Tensor]:
        """Return the tensors that training changes, by name."""
        named = self.classifier.named_parameters()
        return {name: p.detach() for name, p in named if p.requires_grad}


def tune(
    adapter: Adapter,
    train: Examples,
    val: Examples | None,
    num_classes: int,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    progress: Progress = SILENT,
) -> Tuned:
    """Train adapter and head, and return the better of the start and every epoch.

    "Better" is accuracy on `val`, then its loss; with `config.keep="least_loss"` it is the loss,
    among epochs that are no less accurate than the start. `"last"` keeps the last epoch as the
    literature does, and so does a run without `val`. With `checkpoint`, a folder, the state is
    written there after every epoch, and the same run started again continues from it, until the
    caller has saved the result and calls `Tuned.checkpoint.remove`.

    Raises VPromptError when the loss is not finite, naming the step.
    """
    if isinstance(adapter, NoAdapter):
        train, val = _with_features(adapter, train, config), _with_features(adapter, val, config)
    start_head, whitening = _start_head(adapter, train, num_classes, config)
    classifier = Classifier(adapter, start_head, whitening)
    loop = _Loop(classifier, _optimizer(classifier, config))
    store = Checkpoint(checkpoint, identity=_identity(loop, train, val, config))
    if not store.load(loop):
        _finish_epoch(loop, 0, None, 0.0, val, config)
    steps = math.ceil(len(train) / config.batch_size)
    done = loop.history[-1].epoch
    with progress.step("tune", steps * config.epochs) as step:
        step.advance(steps * done, _note(loop))
        for epoch in range(done + 1, config.epochs + 1):
            loss, rate = _train_epoch(loop, train, epoch, steps, config, step)
            _check_finite(loop, epoch, config)
            _finish_epoch(loop, epoch, loss, rate, val, config)
            step.advance(0, _note(loop))
            store.save(loop)
    _restore(classifier, loop.best)
    return Tuned(adapter, classifier.head(), loop.history, loop.best_epoch, start_head, store)


def compute_features(
    adapter: Adapter, examples: Examples, config: TrainConfig, *, progress: Progress = SILENT
) -> Features:
    """Return the features of all examples in fp32, without gradients."""
    if isinstance(examples, _FeatureExamples):
        return examples.features
    backbone, parts = adapter.backbone, []
    with torch.no_grad(), progress.step("features", len(examples)) as step:
        for pixels, _ in examples.batches(config.batch_size):
            with autocast(config.precision, backbone.device):
                features = adapter.features(backbone.normalise(pixels.to(backbone.device)))
            parts.append(features.float().cpu())
            step.advance(len(pixels))
    return torch.cat(parts)


def learning_rate_factor(step: int, total: int, warmup: float, floor: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up from above 0, then half-cosine.

    Step 0 already trains: the papers' code starts its first epoch at rate 0.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    share = (step - rising) / max(total - rising, 1)
    return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2


def _train_epoch(
    loop: _Loop, train: Examples, epoch: int, steps: int, config: TrainConfig, step: Step
) -> tuple[float, float]:
    order = torch.randperm(len(train), generator=stream(config.seed, f"order, epoch {epoch}"))
    dropout = stream(config.seed, f"dropout, epoch {epoch}")
    device, total, factor = loop.classifier.weight.device, 0.0, 0.0
    for index, (inputs, labels) in enumerate(train.batches(config.batch_size, order)):
        now = (epoch - 1) * steps + index
        factor = learning_rate_factor(now, steps * config.epochs, config.warmup, config.min_lr)
        for group in loop.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        features = _features(loop.classifier.adapter, inputs.to(device), config, dropout)
        loss = functional.cross_entropy(loop.classifier.logits(features), labels.to(device))
        value = loss.item()
        if not math.isfinite(value):
            raise VPromptError(
                f"The loss became {value} at step {now} (epoch {epoch}). Nothing was kept. Use a "
                f"smaller --lr (it was {config.lr:g}), or --precision fp32."
            )
        loop.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loop.optimizer.step()
        total += value * len(labels)
        step.advance(1)
    return total / len(train), config.lr * factor


def _check_finite(loop: _Loop, epoch: int, config: TrainConfig) -> None:
    """Stop where the very last step of an epoch exploded, which no loss has seen yet."""
    for name, value in loop.trainable().items():
        if not torch.isfinite(value).all():
            raise VPromptError(
                f"{name!r} is not finite after the last step of epoch {epoch}. Nothing was kept. "
                f"Use a smaller --lr (it was {config.lr:g}), or --precision fp32."
            )


def _features(
    adapter: Adapter, inputs: Tensor, config: TrainConfig, dropout: torch.Generator
) -> Features:
    if isinstance(adapter, NoAdapter):
        return inputs  # features already, computed once
    images: Images = adapter.backbone.normalise(inputs)
    with autocast(config.precision, adapter.backbone.device):
        return adapter.features(images, generator=dropout)


def _finish_epoch(
    loop: _Loop,
    epoch: int,
    loss: float | None,
    rate: float,
    val: Examples | None,
    config: TrainConfig,
) -> None:
    """Judge the epoch on validation and remember its parameters if none were better."""
    accuracy = val_loss = None
    if val is not None and (config.keep != "last" or epoch in (0, config.epochs)):
        features = compute_features(loop.classifier.adapter, val, config)
        with torch.no_grad():
            logits = loop.classifier.logits(features.to(loop.classifier.weight.device)).cpu()
        accuracy = (logits.argmax(1) == val.labels).double().mean().item()
        val_loss = functional.cross_entropy(logits.double(), val.labels).item()
    record = EpochRecord(epoch, rate, loss, accuracy, val_loss)
    if config.keep == "last" or val is None or epoch == 0:
        better = True
    else:
        before = next(r for r in loop.history if r.epoch == loop.best_epoch)
        better = _is_better(record, before, loop.history[0], config.keep)
    loop.history.append(record)
    if better:
        loop.best = {name: value.clone() for name, value in loop.trainable().items()}
        loop.best_epoch = epoch


def _is_better(now: EpochRecord, before: EpochRecord, start: EpochRecord, keep: str) -> bool:
    """Compare by accuracy, then loss; or by loss, among epochs no less accurate than the start."""
    assert now.val_accuracy is not None and now.val_loss is not None
    assert before.val_accuracy is not None and before.val_loss is not None
    assert start.val_accuracy is not None
    if keep == "least_loss":
        return now.val_accuracy >= start.val_accuracy and now.val_loss < before.val_loss
    return (now.val_accuracy, -now.val_loss) > (before.val_accuracy, -before.val_loss)


def _start_head(
    adapter: Adapter, train: Examples, num_classes: int, config: TrainConfig
) -> tuple[Head, tuple[Tensor, Tensor]]:
    """Return the head at the start, and the mean and whitening map of its coordinates."""
    width = adapter.backbone.feature_dim
    if config.head == "closed_form":
        features = compute_features(adapter, train, config)
        return closed_form(features, train.labels, num_classes), _whitening(features)
    plain = (torch.zeros(width), torch.eye(width))
    weight = torch.zeros(num_classes, width)
    if config.head == "kaiming":
        nn.init.kaiming_normal_(weight, a=0, mode="fan_out", generator=stream(config.seed, "head"))
        # The VPT code's prior: every class starts at probability 0.01.
        return Head(weight, torch.full((num_classes,), -math.log(99)), "kaiming"), plain
    return Head(weight, torch.zeros(num_classes), "zero"), plain


def _whitening(features: Features, shrinkage: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse square root of the shrunk covariance of features."""
    data = features.double()
    centred = data - data.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(data))
    shrunk = (1 - shrinkage) * values.clamp_min(0) + shrinkage * values.mean().clamp_min(1e-12)
    return data.mean(0).float(), ((vectors * shrunk.rsqrt()) @ vectors.T).float()


def _optimizer(classifier: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
    """Build one optimiser that honours weight decay everywhere but on the head's bias."""
    groups: list[dict[str, Any]] = [
        {
            "params": [classifier.weight],
            "peak_lr": config.head_lr,
            "weight_decay": config.weight_decay,
        },
        {"params": [classifier.bias], "peak_lr": config.head_lr, "weight_decay": 0.0},
    ]
    inner = [p for p in classifier.adapter.parameters() if p.requires_grad]
    if inner:
        groups.append({"params": inner, "peak_lr": config.lr, "weight_decay": config.weight_decay})
    for group in groups:
        group["lr"] = group["peak_lr"]
    if config.opt == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups)


class _FeatureExamples(Examples):
    """Examples of a method that trains the head alone: features computed once, fed as inputs."""

    features: Features

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `(features, labels)` in the given order."""
        order = torch.arange(len(self)) if order is None else order
        for rows in order.split(size):
            yield self.features[rows], self.labels[rows]


def _with_features(adapter: Adapter, examples: Examples | None, config: TrainConfig) -> Any:
    if examples is None:
        return None
    made = _FeatureExamples(examples.pixels, examples.labels, examples.digest)
    object.__setattr__(made, "features", compute_features(adapter, examples, config))
    return made


def _identity(
    loop: _Loop, train: Examples, val: Examples | None, config: TrainConfig
) -> dict[str, Any]:
    """Return everything that determines the run; its checkpoint is named after it."""
    return {
        "config": config.model_dump(),
        "train": train.digest,
        "val": val.digest if val is not None else None,
        "start": digest(*(v.cpu().numpy().tobytes() for v in loop.trainable().values())),
        "adapter": loop.classifier.adapter.identity(),
        "precision": resolve(config.precision, loop.classifier.weight.device),
        "backbone": loop.classifier.adapter.backbone.fingerprint,
        "data_config": loop.classifier.adapter.backbone.data_config.to_json(),
    }


def _restore(classifier: Classifier, state: dict[str, Tensor]) -> None:
    own = dict(classifier.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def _note(loop: _Loop) -> str:
    accuracy = loop.history[-1].val_accuracy
    return "" if accuracy is None else f"val {100 * accuracy:.1f} %"
