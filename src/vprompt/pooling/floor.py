"""Floor: what scores of a pool mean: what shuffled labels would score, and who is told apart.

A metric always puts sources into an order. Whether the order says anything is asked twice: with the
labels shuffled, which is the noise floor, and on random halves of the images.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import numpy_stream
from vprompt.pooling import scoring
from vprompt.pooling.scoring import PLAIN, Scores

LOOKS, FEWEST = 20, 5  # shuffles and halves: as many as the time allows
SECONDS = 10.0
SURE = 0.95  # share of the halves on which one source is ahead of another that it is told from
_PER_IMAGE = ("features", "labels", "source_probabilities")
_NAMED = 6
_TRIED = 5  # scores that are timed


@dataclass(frozen=True)
class Floor:
    """What one metric's scores of a pool are worth.

    `shuffled` is the best score of any source under shuffled labels: its mean and its largest over
    the shuffles; by chance a score passes 20 of them once in 21. `ahead` says of every other
    candidate on which share of random halves the best source is ahead of it.
    """

    metric: str
    best: str
    score: float
    shuffled: tuple[float, float]
    ahead: dict[str, float]

    @property
    def above(self) -> bool:
        """Whether the best score is more than meaningless labels give."""
        return self.score > self.shuffled[1]

    @property
    def alike(self) -> list[str]:
        """The sources that are not told apart from the best."""
        return [name for name, share in self.ahead.items() if share < SURE and name != PLAIN]

    def sentences(self) -> list[str]:
        """Return what a person should know before choosing by the scores."""
        mean, high = self.shuffled
        verdict = "is above it" if self.above else "is not above it: the order is noise"
        said = [
            f"noise floor of {self.metric}: {mean:.3f}, up to {high:.3f} (best source under "
            f"shuffled labels); the best score, {self.score:.3f}, {verdict}"
        ]
        if not self.ahead:
            return said
        others = [name for name in self.ahead if name != PLAIN]
        if not self.above or (others and len(self.alike) == len(others)):
            told = "the scores do not separate the sources: combine them rather than choose one"
        elif self.alike:
            told = f"{self.best} is not told apart from {_some(self.alike)}, but from the others"
        else:
            told = f"{self.best} is told apart from all other sources" if others else ""
        plain = self.ahead.get(PLAIN)
        if plain is not None and plain < SURE:
            told += f"{'; ' if told else ''}the frozen features without a prompt score as well"
        return [*said, *([told] if told else [])]


def of(
    metric: str, candidates: Mapping[str, Mapping[str, Any]], scores: Scores, *, seed: int = 0
) -> Floor | None:
    """Return what the scores are worth; None where the metric has no labels to shuffle.

    A metric that takes long is asked less often, and not at all where that would be of no use.
    """
    needed = scoring.needs(metric)
    names = [name for name, _ in scores.ranked]
    sources = [name for name in names if name != PLAIN]
    if "labels" not in needed or not sources:
        return None
    kept = {name: {key: candidates[name][key] for key in needed} for name in names}
    randomness = numpy_stream(seed, f"noise floor {metric}")
    labels = next(iter(kept.values()))["labels"]
    best: list[float] = []
    looks, began = 0, time.process_time()
    while looks < LOOKS:
        spent = time.process_time() - began  # of this process: a busy machine changes nothing
        if looks and spent / looks * max(FEWEST, looks + 1) > SECONDS / 2:
            break
        looks += 1
        order = torch.from_numpy(randomness.permutation(len(labels)))
        shuffled = {n: {**kept[n], "labels": labels[order]} for n in sources}
        found = scoring.rank(metric, shuffled).ranked
        best += [found[0][1]] if found else []
    if looks < FEWEST or not best:
        return None
    halves = []
    for _ in range(looks):
        rows = _half(labels, randomness)
        half = dict(scoring.rank(metric, {n: _of_rows(kept[n], rows) for n in names}).ranked)
        halves += [half] if len(half) == len(names) else []
    others = [name for name in names if name != sources[0]] if len(halves) >= FEWEST else []
    ahead = {
        name: float(np.mean([half[sources[0]] > half[name] for half in halves])) for name in others
    }
    score = dict(scores.ranked)[sources[0]]
    spread = (float(np.mean(best)), float(np.max(best)))
    return Floor(metric, sources[0], score, spread, ahead)


def expected(metrics: Sequence[str], labels: Tensor, width: int, candidates: int) -> float:
    """Return how many seconds scores and their floor take, by one score of features at random.

    Metrics that are computed from something else are left out: nothing is known of them.
    """
    inputs = {"features": torch.randn(len(labels), width), "labels": labels}
    total = 0.0
    for metric in metrics:
        if set(scoring.needs(metric)) != set(inputs):
            continue
        for each in (1, _TRIED):  # the first one also warms up
            began, worked = time.perf_counter(), time.process_time()
            for _ in range(each):
                with contextlib.suppress(VPromptError):
                    scoring.compute(metric, **inputs)
            once = (time.perf_counter() - began) / each
            work = (time.process_time() - worked) / each
        total += once * candidates
        if (
            len(metrics) == 1
        ):  # looks are bounded in seconds of work, which a busy machine stretches
            bound = min(work * candidates * LOOKS, SECONDS / 2)
            total += 2 * bound * once / max(work, 1e-9)
    return total


def said(metric: str, candidates: Mapping[str, Mapping[str, Any]], scores: Scores) -> list[str]:
    """Return what a person should know of the scores, or that it was not looked for."""
    found = of(metric, candidates, scores)
    if found is not None:
        return found.sentences()
    if "labels" not in scoring.needs(metric) or not scores.ranked:
        return []
    return [f"noise floor of {metric}: not looked for, since that would take too long"]


def _half(labels: Tensor, randomness: np.random.Generator) -> Tensor:
    """Return the rows of half of every class, and of one image at least."""
    rows: list[int] = []
    for label in labels.unique().tolist():
        own = randomness.permutation(np.flatnonzero(labels.numpy() == label))
        rows += own[: max(1, (len(own) + 1) // 2)].tolist()
    return torch.tensor(sorted(rows))


def _of_rows(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    return {key: value[rows] if key in _PER_IMAGE else value for key, value in inputs.items()}


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
