"""Heads: linear classifiers in closed form, their strength chosen by cross-validation.

A head that starts at its optimum for the features leaves the tuning epochs to the prompt. Two
families are tried, ridge regression on one-hot labels and linear discriminant analysis with a
shrunk covariance, each rescaled so that its softmax is calibrated on held-out folds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.precision import steady_linear
from vprompt.core.threads import on_one_thread
from vprompt.core.types import Features, Labels
from vprompt.data.targets import CLASS, NUMBER, SEVERAL

RIDGE_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
LDA_SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
FAMILIES = ("ridge", "lda")
ABSENT = -30.0  # the logit of a class that no training image shows


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier `weight [classes, dim]`, `bias [classes]`, and how it was chosen.

    A `cosine` head sees features at unit length, so that its rows are compared by direction. A
    `sigmoid` head says of every class by itself how probable it is, as SigLIP was trained to. With
    `thresholds` `[classes]` an image has every class that is at least so probable; where it is of
    `numbers`, its one output is the number itself.
    """

    weight: Tensor
    bias: Tensor
    family: str = "given"
    strength: float = float("nan")
    cv_accuracy: float = float("nan")
    cv_loss: float = float("nan")
    cosine: bool = False
    sigmoid: bool = False
    cv_losses: Tensor | None = None  # of every image held out, in an order that labels alone fix
    thresholds: Tensor | None = None
    numbers: bool = False

    @property
    def target(self) -> str:
        """What it gives an image: one of `targets.KINDS`."""
        if self.numbers:
            return NUMBER
        return CLASS if self.thresholds is None else SEVERAL

    def logits(self, features: Features) -> Tensor:
        """Return `[batch, classes]`; an image has the same to the bit in a batch of any size."""
        if self.cosine:
            features = functional.normalize(features, dim=-1)
        return steady_linear(features, self.weight.to(features), self.bias.to(features))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities that logits `[..., classes]` stand for."""
        return logits.sigmoid() if self.sigmoid else logits.softmax(-1)


@on_one_thread
def closed_form(
    features: Features,
    labels: Labels,
    num_classes: int,
    *,
    families: Iterable[str] = FAMILIES,
    folds: int = 5,
) -> Head:
    """Fit every family at every strength and return the one with the best held-out log-loss.

    Works in float64. Classes without an image get a logit that is never chosen. With fewer than
    two images of every class nothing can be held out, and the middle strength is taken.
    """
    span = Span.of(features.detach().double())
    data, width = span.data, span.width
    fold_of = _stratified_folds(labels, folds)
    grid = [(family, s) for family in families for s in strengths(family)]
    held_out: dict[tuple[str, float], list[Tensor]] = {candidate: [] for candidate in grid}
    truth: list[Tensor] = []
    for fold in range(folds):
        fit, test = fold_of != fold, fold_of == fold
        test = test & torch.isin(labels, labels[fit])
        if not test.any():
            continue
        truth.append(labels[test])
        for family in {family for family, _ in grid}:
            for strength, head in head_path(family, data[fit], labels[fit], num_classes, width):
                held_out[family, strength].append(head.logits(data[test]))
    if not truth:
        family = grid[0][0]
        strength = strengths(family)[len(strengths(family)) // 2]
        return _single(_scaled(span.lift(_fit(family, strength, span, labels, num_classes)), 1.0))
    targets = torch.cat(truth)
    judged = {
        candidate: calibrated(torch.cat(parts), targets) for candidate, parts in held_out.items()
    }
    best = min(grid, key=lambda candidate: judged[candidate][0])
    loss, accuracy, scale = judged[best]
    head = _scaled(span.lift(_fit(*best, span, labels, num_classes)), scale)
    logits = torch.cat(held_out[best]) * scale
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return _single(replace(head, cv_accuracy=accuracy, cv_loss=loss, cv_losses=losses))


def shrinkage_lda(features: Features, labels: Labels, num_classes: int, shrinkage: float) -> Head:
    """Return `logits_c = x' S^-1 m_c - m_c' S^-1 m_c / 2 + log(n_c / N)`, less their mean.

    S is the pooled within-class covariance, shrunk towards its mean variance.
    """
    span = Span.of(features.detach().double())
    return _scaled(span.lift(_fit("lda", shrinkage, span, labels, num_classes)), 1.0)


@dataclass(frozen=True, eq=False)
class Span:
    """Features in coordinates of their own span, where they are fewer than wide.

    `data` `[images, images]` replaces `[images, width]`: every head here is the same in any
    rotation of the features, and a decomposition costs the cube of the width, which `width` keeps.
    """

    data: Tensor
    width: int
    mean: Tensor
    basis: Tensor | None = None  # `[images, width]`, orthonormal rows

    @classmethod
    def of(cls, features: Tensor) -> "Span":
        """Rotate float64 features `[images, width]`."""
        count, width = features.shape
        mean = features.mean(0)
        if count >= width:
            return cls(features, width, mean)
        upper, sizes, basis = torch.linalg.svd(features - mean, full_matrices=False)
        return cls(upper * sizes, width, mean, basis)

    def lift(self, head: Head) -> Head:
        """Return a head of these coordinates as one of the features."""
        if self.basis is None:
            return head
        weight = head.weight @ self.basis
        return replace(head, weight=weight, bias=head.bias - weight @ self.mean)


def _fit(family: str, strength: float, span: Span, labels: Labels, num_classes: int) -> Head:
    path = head_path(family, span.data, labels, num_classes, span.width, (strength,))
    return next(head for own, head in path if own == strength)


def strengths(family: str) -> tuple[float, ...]:
    """Return the strengths that are tried of a family of heads."""
    known = {"ridge": RIDGE_STRENGTHS, "lda": LDA_SHRINKAGES}
    if family not in known:
        raise VPromptError(f"No closed-form head called {family!r}. There are: lda, ridge.")
    return known[family]


def head_path(
    family: str,
    data: Tensor,
    labels: Labels,
    num_classes: int,
    width: int,
    chosen: tuple[float, ...] | None = None,
) -> list[tuple[float, Head]]:
    """Return the head at every strength for the price of one eigendecomposition.

    `width` is that of the features, where `data` are their coordinates in a `Span`: strengths are
    relative to the mean variance over all of it.
    """
    path = _ridge_path if family == "ridge" else _lda_path
    return path(data, labels, num_classes, width, chosen or strengths(family))


def _ridge_path(
    data: Tensor, labels: Labels, num_classes: int, width: int, chosen: tuple[float, ...]
) -> list[tuple[float, Head]]:
    targets = functional.one_hot(labels, num_classes).double()
    present = targets.mean(0) > 0
    heads = []
    for strength, fitted in ridges(data, targets, width, chosen):
        head = _mask_absent(fitted.weight, fitted.bias, present)
        heads.append((strength, replace(head, family="ridge", strength=strength)))
    return heads


def ridges(
    data: Tensor, targets: Tensor, width: int, chosen: tuple[float, ...]
) -> list[tuple[float, Head]]:
    """Return the ridge regression on `targets` `[images, outputs]` at every strength.

    The penalty is the strength times the mean variance of all `width` features, times the images.
    """
    mean, prior = data.mean(0), targets.mean(0)
    centred = data - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    rotated = vectors.T @ (centred.T @ (targets - prior))
    heads = []
    variance = (values.sum() / width).clamp_min(1e-30)
    for strength in chosen:
        penalty = strength * variance
        weight = (vectors @ (rotated / (values.clamp_min(0) + penalty)[:, None])).T
        head = Head(weight, prior - weight @ mean, family="ridge", strength=strength)
        heads.append((strength, head))
    return heads


def _lda_path(
    data: Tensor, labels: Labels, num_classes: int, width: int, chosen: tuple[float, ...]
) -> list[tuple[float, Head]]:
    counts = torch.bincount(labels, minlength=num_classes).double()
    sums = data.new_zeros(num_classes, data.shape[1]).index_add_(0, labels, data)
    means = sums / counts.clamp_min(1)[:, None]
    within = data - means[labels]
    freedom = len(data) - int((counts > 0).sum())
    if freedom <= 0:  # one image per class: nothing varies within a class
        within, freedom = data - data.mean(0), max(len(data) - 1, 1)
    values, vectors = torch.linalg.eigh(within.T @ within / freedom)
    variance = (values.sum() / width).clamp_min(1e-30)
    rotated = vectors.T @ means.T
    heads = []
    for strength in chosen:
        shrunk = (1 - strength) * values.clamp_min(0) + strength * variance
        weight = (vectors @ (rotated / shrunk[:, None])).T
        prior = (counts / len(data)).clamp_min(1e-30).log()
        bias = prior - (weight * means).sum(1) / 2
        head = _mask_absent(weight, bias, counts > 0)
        heads.append((strength, replace(head, family="lda", strength=strength)))
    return heads


def _mask_absent(weight: Tensor, bias: Tensor, present: Tensor) -> Head:
    """Centre the logits of the classes that are present; the others are never chosen.

    Centred, the largest logit is at least 0 for any image, so that `ABSENT` lies below it.
    """
    weight = (weight - weight[present].mean(0)) * present[:, None]
    bias = torch.where(present, bias - bias[present].mean(), bias.new_tensor(-torch.inf))
    return Head(weight, bias)


def _scaled(head: Head, scale: float) -> Head:
    """Return the head with its logits scaled, and those of absent classes at `ABSENT`."""
    bias = torch.where(head.bias.isinf(), head.bias.new_tensor(ABSENT), head.bias * scale)
    return replace(head, weight=head.weight * scale, bias=bias)


def _single(head: Head) -> Head:
    return replace(head, weight=head.weight.float(), bias=head.bias.float())


def calibrated(logits: Tensor, labels: Labels) -> tuple[float, float, float]:
    """Return log-loss and accuracy at the calibrated scale of the logits, and that scale.

    It is the scale of least log-loss, but one mistake more than was seen is counted, on the image
    of median confidence: folds without any mistake would otherwise ask for an infinite scale, at
    which nothing is left to learn.
    """
    top = logits.topk(2, dim=1)
    typical = int((top.values[:, 0] - top.values[:, 1]).argsort()[len(logits) // 2])
    rows = torch.cat([logits, logits[typical : typical + 1]])
    targets = torch.cat([labels, top.indices[typical, 1:]])

    def loss(log_scale: float) -> float:
        return functional.cross_entropy(rows * 10**log_scale, targets).item()

    from scipy.optimize import minimize_scalar  # loading it takes a third of a second

    found = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-3})
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    scale = float(10**found.x)
    return functional.cross_entropy(logits * scale, labels).item(), accuracy, scale


def _stratified_folds(labels: Labels, folds: int) -> Tensor:
    """Deal the images of every class over the folds in turn; deterministic in their order."""
    fold_of = torch.empty_like(labels)
    offset = 0
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        fold_of[rows] = (torch.arange(len(rows)) + offset) % folds
        offset += len(rows)
    return fold_of
