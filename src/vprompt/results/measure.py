"""Measure: the only code that opens a test split, once, for everything that is to be reported."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.core.types import Labels, Targets
from vprompt.data.targets import NUMBER, SEVERAL
from vprompt.data.task import Task
from vprompt.learning.adapter import Adapter, FeatureAdapter
from vprompt.learning.classifier import Candidate, features_of
from vprompt.learning.ensemble import Ensemble
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head
from vprompt.prompts.prompt import Prompt, prompt_digest
from vprompt.results import numbers, several
from vprompt.results.numbers import NumberMeasurement
from vprompt.results.several import SeveralMeasurement


@dataclass(frozen=True)
class PairedGain:
    """Difference in accuracy to another candidate on the same images, with its 95 % interval.

    Both were right or both wrong on most images, so this interval is narrower than two separate
    ones. It is the normal approximation from the discordant images.
    """

    over: str
    difference: float
    low: float
    high: float
    only_here: int
    only_there: int


@dataclass(frozen=True)
class Measurement:
    """Accuracies in [0, 1] on `images` test images; `low` and `high` are Wilson's 95 % interval.

    `mean_per_class_recall` is also known as balanced accuracy.
    """

    images: int
    acc1: float
    low: float
    high: float
    acc5: float | None
    mean_per_class_recall: float
    majority: float
    gain: "PairedGain | None" = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


Measured = Measurement | SeveralMeasurement | NumberMeasurement


def test_accuracy(
    backbone: Backbone,
    task: Task,
    candidates: Mapping[str, Candidate],
    *,
    precision: str = "auto",
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Open the test split and measure fixed candidates on it, all in one visit.

    What comes back by name is a `Measured` of the kind of the task's target. The candidates must be
    finished: nothing may be chosen by what comes back. Each is compared with the first one, image
    by image.
    """
    if task.test is None:
        raise VPromptError(f"Task {task.name!r} has no test split to measure on.")
    examples = task.examples(
        task.test.open(), backbone.data_config, skip_bad=skip_bad, progress=progress
    )
    if skipped := len(task.test) - len(examples):
        progress.say(f"left out {skipped} unreadable test images")
    judge_one, found = _judge_of(task, examples.labels), {}
    passes, seen = {name: _passes(each) for name, (each, _) in candidates.items()}, set[str]()
    with progress.step("test", len(set[str]().union(*passes.values())) * len(examples)) as step:
        for name, (adapted, head) in candidates.items():
            logits = head.logits(features_of(backbone, adapted, examples, precision=precision))
            _check_numbers(logits, name)
            found[name] = judge_one(name, head, logits)
            step.advance(len(passes[name] - seen) * len(examples), name)
            seen |= passes[name]
    return found


test_accuracy.__test__ = False  # type: ignore[attr-defined]  # pytest: a measurement, not a test


def _check_numbers(logits: Tensor, name: str) -> None:
    """Refuse to call an accuracy what comes of values that are no numbers."""
    bad = int((~torch.isfinite(logits).all(1)).sum())
    if bad:
        raise VPromptError(
            f"{name} gives no numbers (NaN or infinity) for {bad} of {len(logits)} test images, so "
            "it has no accuracy: its values are too large for the backbone. If it is a stranger's, "
            "it is damaged or made to harm; if it is yours, try --precision fp32."
        )


def _passes(adapted: Prompt | Adapter | None) -> set[str]:
    """Return a name for every pass of the images, so that those two candidates share count once."""
    if adapted is None or isinstance(adapted, FeatureAdapter):
        return {"no prompt"}
    if isinstance(adapted, Ensemble):
        return set[str]().union(*map(_passes, adapted.members()))
    prompt = adapted.prompt() if isinstance(adapted, Adapter) and adapted.of_prompt else adapted
    return {prompt_digest(prompt) if isinstance(prompt, Prompt) else str(id(adapted))}


def _judge_of(task: Task, labels: Targets) -> Callable[[str, Head, Tensor], Measured]:
    """Return what measures candidates for the target of a task."""
    if task.target == SEVERAL:
        return several.Judge(labels, task.classes)
    return numbers.Judge(labels) if task.target == NUMBER else _ClassJudge(labels)


class _ClassJudge:
    """Measures candidates on the same images, one after another, each against the first."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.first: tuple[str, Tensor] | None = None

    def __call__(self, name: str, head: Head, logits: Tensor) -> Measurement:
        """Return what the logits `[images, classes]` of a candidate are worth."""
        del head
        measured, right = judge(logits, self.labels), logits.argmax(1) == self.labels
        if self.first is None:
            self.first = name, right
            return measured
        return replace(measured, gain=paired_gain(right, self.first[1], over=self.first[0]))


def judge(logits: Tensor, labels: Labels) -> Measurement:
    """Return the measurements of logits `[images, classes]`."""
    right = logits.argmax(1) == labels
    count, classes = logits.shape
    present, counts = labels.unique(return_counts=True)
    recalls = torch.stack([right[labels == label].double().mean() for label in present])
    top5 = (logits.topk(5, 1).indices == labels[:, None]).any(1) if classes > 5 else None
    low, high = wilson_interval(int(right.sum()), count)
    return Measurement(
        images=count,
        acc1=right.double().mean().item(),
        low=low,
        high=high,
        acc5=top5.double().mean().item() if top5 is not None else None,
        mean_per_class_recall=recalls.mean().item(),
        majority=counts.max().item() / count,
    )


def paired_gain(right: Tensor, reference: Tensor, *, over: str) -> PairedGain:
    """Compare two candidates that were right or wrong on the same images.

    Reference: the variance is that of McNemar, "Note on the sampling error of the difference
    between correlated proportions or percentages", 1947.
    """
    count = len(right)
    here = int((right & ~reference).sum())
    there = int((~right & reference).sum())
    difference = (here - there) / count
    half = 1.959964 * math.sqrt(max(here + there - (here - there) ** 2 / count, 0)) / count
    return PairedGain(over, difference, difference - half, difference + half, here, there)


def harmonic_mean(base: float, new: float) -> float:
    """Return `2 b n / (b + n)`, how the base-to-new protocol joins its two accuracies."""
    return 2 * base * new / (base + new) if base + new else 0.0


def wilson_interval(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, by default at 95 %.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return max(0.0, centre - half), min(1.0, centre + half)
