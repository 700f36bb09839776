"""Held out: how well closed-form heads do on images that they have not seen, by repeated folds.

What a few images say about a prompt depends on how they are dealt into folds. Here they are dealt
several times, every candidate the same way, so that two candidates are compared image by image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.randomness import stream
from vprompt.core.threads import on_one_thread
from vprompt.core.types import Features, Labels
from vprompt.models.heads import FAMILIES, Span, calibrated, head_path, strengths

REPEATS, FOLDS = 4, 5


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What was seen on every image `[images]` while it was held out, the mean over all deals.

    `losses` are log-losses in nats at the calibrated scale of the logits, `correct` the share of
    deals in which the class was right. `family`, `strength` and `scale` are those of the head that
    had the least loss.
    """

    losses: Tensor
    correct: Tensor
    family: str
    strength: float
    scale: float

    @property
    def loss(self) -> float:
        """The mean log-loss, in nats."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """The share of images that were classified right."""
        return float(self.correct.mean())


def can_hold_out(labels: Labels) -> bool:
    """Say whether some class has two images, so that one can be held out."""
    return bool((labels.bincount() > 1).any())


def deals(labels: Labels, *, repeats: int = REPEATS, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """Return the fold of every image in every deal, `[repeats, images]`, class by class in turn."""
    dealt = torch.empty(repeats, len(labels), dtype=torch.long)
    for repeat in range(repeats):
        generator = stream(seed, f"deal {repeat}")
        offset = 0
        for label in labels.unique():
            rows = (labels == label).nonzero().flatten()
            rows = rows[torch.randperm(len(rows), generator=generator)]
            dealt[repeat, rows] = (torch.arange(len(rows)) + offset) % folds
            offset += len(rows)
    return dealt


@on_one_thread
def judge(
    features: Features,
    labels: Labels,
    num_classes: int,
    dealt: Tensor,
    *,
    families: Sequence[str] = FAMILIES,
) -> HeldOut:
    """Return how the best closed-form head does on held-out images; `dealt` comes from `deals`.

    An image whose class no other image of a fold shows is not held out there; one that never is
    has no say. Raises VPromptError nowhere: ask `can_hold_out` first.
    """
    span = Span.of(features.detach().double())
    grid = [(family, strength) for family in families for strength in strengths(family)]
    logits: dict[tuple[str, float], list[Tensor]] = {candidate: [] for candidate in grid}
    seen: list[Tensor] = []
    for fold_of in dealt:
        for fold in fold_of.unique():
            fit = fold_of != fold
            test = ~fit & torch.isin(labels, labels[fit])
            if not test.any():
                continue
            seen.append(test.nonzero().flatten())
            for family in families:
                path = head_path(family, span.data[fit], labels[fit], num_classes, span.width)
                for strength, head in path:
                    logits[family, strength].append(head.logits(span.data[test]))
    rows = torch.cat(seen)
    targets = labels[rows]
    judged = {
        candidate: calibrated(torch.cat(parts), targets) for candidate, parts in logits.items()
    }
    best = min(grid, key=lambda candidate: judged[candidate][0])
    scale = judged[best][2]
    scores = torch.cat(logits[best])
    losses = functional.cross_entropy(scores * scale, targets, reduction="none")
    right = (scores.argmax(1) == targets).double()
    return HeldOut(_mean_of(losses, rows, labels), _mean_of(right, rows, labels), *best, scale)


def _mean_of(values: Tensor, rows: Tensor, labels: Labels) -> Tensor:
    """Return the mean value of every image that occurs in `rows`, in the order of the images."""
    sums = values.new_zeros(len(labels)).index_add_(0, rows, values)
    counts = torch.bincount(rows, minlength=len(labels))
    return (sums / counts)[counts > 0]
