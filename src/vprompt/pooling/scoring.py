"""Scoring: find what a metric needs by its parameters' names, compute it, or say what is missing.

Most metrics are functions of features and labels. Some need what the source's head says, its
prompt, or its own images; each says so by naming them before the `*` of its signature.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.types import Labels
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Plan

INPUTS = {
    "features": "the target's images under the source's prompt",
    "labels": "the labels of the target's images",
    "source_probabilities": "what the source's own head says of the target's images, in classes",
    "tokens": "the source's prompt",
    "target_tokens": "a prompt learned on the target",
    "source_features": "the source's own images under its prompt (needs source data)",
    "source_labels": "the labels of the source's own images (needs source data)",
}
PLAIN = "(no prompt)"  # the frozen features by themselves, among the candidates
SOURCE_DATA = frozenset({"source_features", "source_labels"})
_LABELS = ("labels", "source_labels")
_PER_IMAGE = (("labels", "features", "source_probabilities"), ("source_labels", "source_features"))


@dataclass(frozen=True)
class Scores:
    """A pool under one metric.

    `ranked` holds `(source, score)`, best first; `missing` says of every other source why it has no
    score; `seconds` is the time of the metric alone, what it needs having been gathered before.
    """

    ranked: list[tuple[str, float]]
    missing: dict[str, str]
    seconds: float


def needs(metric: str) -> tuple[str, ...]:
    """Return the names of what a metric is computed from, of those in `INPUTS`."""
    function = registry.find("metrics", registry.parse(metric).name)
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)


def plan_of(metrics: Sequence[str]) -> Plan:
    """Return what has to be gathered for metrics: features, and a prompt on the target if asked."""
    epochs = set()
    for metric in metrics:
        registry.build("metrics", metric)  # refuses what does not exist
        ask = registry.beside("metrics", metric, "plan")
        if ask is not None:
            epochs.add(ask().target_epochs)
    if len(epochs) > 1:
        raise VPromptError(
            f"Metrics ask for prompts learned on the target for {sorted(epochs)} epochs. Compute "
            "them one at a time."
        )
    return Plan(target_epochs=max(epochs, default=0))


def inputs_of(evidence: Evidence, row: int | None) -> dict[str, Tensor]:
    """Return what is known of a source, or with None of the frozen features, by name."""
    if row is None:
        return {"features": evidence.plain, "labels": evidence.labels}
    found = {"features": evidence.features[row], "labels": evidence.labels}
    if evidence.prompts is not None:
        found["tokens"] = evidence.prompts[row]
    if evidence.target is not None:
        found["target_tokens"] = evidence.target
    said = None if evidence.probabilities is None else evidence.probabilities[row]
    if said is not None:
        found["source_probabilities"] = said
    return found


def compute(metric: str, **inputs: Any) -> float:
    """Return a metric of what it needs, by name: NumPy arrays, or tensors on any device.

    Inputs of `INPUTS` that the metric has no use for are left aside. Raises VPromptError where one
    is missing, misshapen or not finite, and where the result lies outside the metric's range.
    """
    return _Metric.named(metric).of(inputs)


def rank(metric: str, candidates: Mapping[str, Mapping[str, Any]]) -> Scores:
    """Score every candidate, from its inputs by name, and put the best first."""
    found, missing = [], {}
    ready = _Metric.named(metric)
    began = time.perf_counter()
    for name, inputs in candidates.items():
        try:
            found.append((name, ready.of(inputs)))
        except VPromptError as error:
            missing[name] = str(error)
    spent = time.perf_counter() - began
    return Scores(sorted(found, key=lambda pair: -pair[1]), missing, spent)


@dataclass(frozen=True)
class _Metric:
    """A metric that was looked up once, which takes longer than to compute many of them."""

    name: str
    function: Callable[..., float]
    needed: tuple[str, ...]
    bounds: tuple[float, float]

    @classmethod
    def named(cls, metric: str) -> "_Metric":
        """Look a metric up; one without `RANGE` may have any value."""
        name, function = registry.parse(metric).name, registry.build("metrics", metric)
        module = inspect.getmodule(inspect.unwrap(registry.find("metrics", name)))
        bounds = getattr(module, "RANGE", (-math.inf, math.inf))
        return cls(name, function, needs(metric), bounds)

    def of(self, inputs: Mapping[str, Any]) -> float:
        """Return the score of what is needed of the inputs."""
        unknown = sorted(set(inputs) - set(INPUTS))
        if unknown:
            raise VPromptError(
                f"No metric is computed from {unknown[0]!r}.{registry.suggest(unknown[0], INPUTS)}"
            )
        missing = [name for name in self.needed if name not in inputs]
        if missing:
            raise VPromptError(
                f"{self.name} needs {missing[0]}, {INPUTS.get(missing[0], 'which is not known')}."
            )
        given = {name: _checked(name, inputs[name]) for name in self.needed}
        _check_lengths(given)
        value, (low, high) = self.function(**given), self.bounds
        # Theory forbids what lies outside: it is a sign of bad numbers, not of merit.
        if not low - 1e-9 <= value <= high + 1e-9:
            raise VPromptError(
                f"{self.name} came out as {value:.6g}, outside [{low:g}, {high:g}]: the features "
                "are too badly conditioned for it."
            )
        return value


def rare_classes(labels: Labels) -> list[str]:
    """Return what a person should know about classes with a single image, if there are any."""
    rare = int((labels.bincount() == 1).sum())
    if not rare:
        return []
    classes = "class has" if rare == 1 else "classes have"
    return [f"{rare} {classes} one image only, which flatters every score"]


def _checked(name: str, value: Any) -> Tensor:
    """Return an input as a tensor on the processor, of the right kind and finite."""
    tensor = torch.as_tensor(value).detach().cpu()
    if name in _LABELS:
        if tensor.ndim != 1 or tensor.is_floating_point():
            raise VPromptError(
                f"{name} are whole numbers, one per image, but got shape {tuple(tensor.shape)} of "
                f"{tensor.dtype}."
            )
        return tensor.long()
    if tensor.ndim != 2 or not tensor.is_floating_point() or 0 in tensor.shape:
        raise VPromptError(
            f"{name} is a matrix of real numbers, but got shape {tuple(tensor.shape)} of "
            f"{tensor.dtype}."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise VPromptError(f"{name} holds values that are not finite, so no score means anything.")
    return tensor.double()


def _check_lengths(given: Mapping[str, Tensor]) -> None:
    for names in _PER_IMAGE:
        counts = {name: len(given[name]) for name in names if name in given}
        if len(set(counts.values())) > 1:
            listing = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise VPromptError(f"There is one row per image, but got {listing}.")
