"""Probe: one pass of the target's images under a prompt, for features and prompt gradients.

Gradients are those of a loss on the features. Which loss is a choice (`mix.GRADIENT_HEADS`): a
head shared by all sources needs one pass, a head of the source's own needs its features first.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.core.linalg import hscore_and_slope, ledoit_wolf_intensity
from vprompt.core.precision import autocast
from vprompt.core.randomness import stream
from vprompt.core.types import Features, Images, Labels
from vprompt.data.task import Examples
from vprompt.models.backbone import Backbone, Entering, extract
from vprompt.models.heads import Head, shrinkage_lda
from vprompt.prompts.prompt import Prompt

NEEDS_FEATURES = ("own", "ncm", "hscore")

# Returns the summed loss of a batch, given its features, its labels and its rows.
Loss = Callable[[Features, Labels, Tensor], Tensor]
Advance = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Slopes:
    """Gradients of the mean loss with respect to a prompt's tokens.

    `halves` `[2, count, dim]` are the sums over either half of the images, divided by the number
    of all: their sum is the gradient over all. Unless halves were asked for, the first is all.
    `variance` `[count, dim]` is that of single images' gradients, empty where not asked for.
    """

    halves: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """The images, the frozen model, and how to pass one through the other."""

    backbone: Backbone
    examples: Examples
    num_classes: int
    batch_size: int
    precision: str

    @torch.no_grad()
    def features(self, prompt: Prompt | None, advance: Advance) -> Features:
        """Return the features of all images, without gradients."""
        found = torch.empty(len(self.examples), self.backbone.feature_dim)
        moved = None if prompt is None else self._moved(prompt)
        for rows, images, _ in self._batches(torch.arange(len(self.examples))):
            with autocast(self.precision, self.backbone.device):
                found[rows] = extract(self.backbone, images, moved).float().cpu()
            advance(len(rows))
        return found

    def slopes(
        self,
        prompt: Prompt,
        loss: Loss,
        advance: Advance,
        *,
        halved: bool = False,
        variances: bool = False,
    ) -> tuple[Features, Slopes]:
        """Return features and gradients from one forward-backward pass over all images."""
        labels = self.examples.labels
        first, second = stratified_halves(labels) if halved else _all_and_none(len(labels))
        found = torch.empty(len(self.examples), self.backbone.feature_dim)
        halves = []
        square = torch.zeros_like(prompt.tokens, dtype=torch.float64)
        for half in (first, second):
            total = torch.zeros_like(prompt.tokens, dtype=torch.float64)
            for rows, images, labels in self._batches(half):
                features, gradient = self._backward(prompt, images, labels, rows, loss, variances)
                found[rows] = features
                total += gradient.double().sum(0)
                if variances:
                    square += gradient.double().square().sum(0)
                advance(len(rows))
            halves.append(total / len(self.examples))
        mean = halves[0] + halves[1]
        spread = square / len(self.examples) - mean.square() if variances else square[:0]
        return found, Slopes(torch.stack(halves).float(), spread.clamp_min(0).float())

    def _backward(
        self,
        prompt: Prompt,
        images: Images | Entering,
        labels: Labels,
        rows: Tensor,
        loss: Loss,
        variances: bool,
    ) -> tuple[Features, Tensor]:
        """Return features, and gradients of the batch `[1, count, dim]` or of every image."""
        moved = self._moved(prompt)
        copies = len(images) if variances else 1
        # Every image may carry tokens of its own, so one pass gives all their gradients.
        tokens = moved.tokens.expand(copies, -1, -1).clone().requires_grad_()
        with autocast(self.precision, self.backbone.device):
            each = tokens if variances else tokens.expand(len(images), -1, -1)
            features = extract(self.backbone, images, moved, each).float()
        loss(features, labels, rows).backward()
        assert tokens.grad is not None
        return features.detach().cpu(), tokens.grad.cpu()

    def _batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Images | Entering, Labels]]:
        if not len(rows):
            return
        batches = self.examples.batches(self.batch_size, rows)
        for part, (inputs, labels) in zip(rows.split(self.batch_size), batches, strict=True):
            yield part, self.backbone.ready(inputs), labels.to(self.backbone.device)

    def _moved(self, prompt: Prompt) -> Prompt:
        return prompt.with_tokens(prompt.tokens.detach()).to(self.backbone.device)


def _all_and_none(count: int) -> tuple[Tensor, Tensor]:
    return torch.arange(count), torch.arange(0)


def head_loss(head: Head) -> Loss:
    """Return the cross-entropy under a head."""

    def loss(features: Features, labels: Labels, rows: Tensor) -> Tensor:
        del rows
        return functional.cross_entropy(head.logits(features), labels, reduction="sum")

    return loss


def hscore_loss(features: Features, labels: Labels) -> Loss:
    """Return the loss whose gradient is that of minus the shrunk H-score of all features.

    The H-score needs all images at once; linear in the features with its slope as coefficients,
    the loss can be taken batch by batch.
    """
    centred = features.double() - features.double().mean(0)
    _, slope = hscore_and_slope(centred, labels, ledoit_wolf_intensity(centred))

    def loss(batch: Features, labels: Labels, rows: Tensor) -> Tensor:
        del labels
        return -(slope[rows.to(slope.device)].to(batch) * batch).sum()

    return loss


def base_head(features: Features, labels: Labels, num_classes: int) -> Head:
    """Fit linear discriminant analysis, its covariance shrunk as Ledoit and Wolf do."""
    data = features.double()
    means = torch.stack([data[labels == c].mean(0) for c in labels.unique()])
    _, index = labels.unique(return_inverse=True)
    return shrinkage_lda(features, labels, num_classes, ledoit_wolf_intensity(data - means[index]))


def nearest_mean_head(features: Features, labels: Labels, num_classes: int) -> Head:
    """Fit the nearest class mean: discriminant analysis with one variance for all directions."""
    return shrinkage_lda(features, labels, num_classes, 1.0)


def random_head(feature_dim: int, num_classes: int) -> Head:
    """Draw the fresh head of the VPT code: Kaiming weights, every class at probability 0.01."""
    weight = torch.empty(num_classes, feature_dim)
    nn.init.kaiming_normal_(weight, mode="fan_out", generator=stream(0, "gradient head"))
    return Head(weight, torch.full((num_classes,), -math.log(99)), "random")


def stratified_halves(labels: Labels) -> tuple[Tensor, Tensor]:
    """Return the rows of two halves with every class in both where it has two images."""
    turn = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        turn[rows] = torch.arange(len(rows)) % 2
    return (turn == 0).nonzero().flatten(), (turn == 1).nonzero().flatten()
