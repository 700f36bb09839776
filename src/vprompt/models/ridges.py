"""Ridges: heads in closed form for numbers and for several classes an image.

Both are ridge regressions whose strength is chosen on held-out folds. What the one says of every
class becomes a probability by one slope for all and an offset for each, fitted on the same folds.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vprompt.core.threads import on_one_thread
from vprompt.core.types import ClassSets, Features, Numbers
from vprompt.models.heads import RIDGE_STRENGTHS, Head, Span, ridges

_MIDDLE = RIDGE_STRENGTHS[len(RIDGE_STRENGTHS) // 2]
_SLOPES = (1e-2, 1e3)  # of a probability in what a ridge regression says


@on_one_thread
def for_numbers(features: Features, numbers: Numbers, *, folds: int = 5) -> Head:
    """Return the ridge regression of least squared error on held-out images.

    Works in float64; `cv_loss` is that error as a share of the variance of the numbers.
    """
    wanted = numbers.detach().double()[:, None]
    span = Span.of(features.detach().double())
    held = _held_out(span, wanted, numbers.argsort(stable=True), folds)
    errors = {strength: (said - wanted).square().mean().item() for strength, said in held.items()}
    strength = min(errors, key=errors.__getitem__, default=_MIDDLE)
    [(_, head)] = ridges(span.data, wanted, span.width, (strength,))
    variance = (wanted - wanted.mean()).square().mean().clamp_min(1e-30).item()
    loss = errors.get(strength, float("nan")) / variance
    return _single(replace(span.lift(head), cv_loss=loss, numbers=True))


@on_one_thread
def for_several(features: Features, sets: ClassSets, *, folds: int = 5) -> Head:
    """Return the ridge regression on 0 and 1 whose probabilities fit held-out images best.

    Works in float64; `cv_loss` is the mean binary cross-entropy. A class that all or none of the
    images show has its share, with one image more of each kind, for every image. An image has the
    classes that are as probable as not, until `thresholds` are chosen.
    """
    wanted = sets.detach().double()
    span = Span.of(features.detach().double())
    held = _held_out(span, wanted, _by_rarest(sets), folds)
    fits = {strength: fit_probabilities(said, wanted) for strength, said in held.items()}
    losses = {strength: fit[0] for strength, fit in fits.items()}
    strength = min(losses, key=losses.__getitem__, default=_MIDDLE)
    [(_, head)] = ridges(span.data, wanted, span.width, (strength,))
    slope, offsets = 1.0, torch.zeros(wanted.shape[1], dtype=torch.float64)
    if strength in fits:
        _, slope, offsets = fits[strength]
    shown = wanted.sum(0)
    constant = (shown == 0) | (shown == len(wanted))
    share = (shown + 1) / (len(wanted) + 2)
    lifted = span.lift(replace(head, weight=head.weight * slope, bias=head.bias * slope + offsets))
    weight = torch.where(constant[:, None], torch.zeros_like(lifted.weight), lifted.weight)
    bias = torch.where(constant, share.logit(), lifted.bias)
    thresholds = torch.full((len(bias),), 0.5)
    found = replace(lifted, weight=weight, bias=bias, cv_loss=losses.get(strength, float("nan")))
    return _single(replace(found, sigmoid=True, thresholds=thresholds))


def fit_probabilities(said: Tensor, sets: Tensor) -> tuple[float, float, Tensor]:
    """Return the binary cross-entropy of `sigmoid(slope * said + offset)`, the slope, the offsets.

    There is one slope for all classes and an offset `[classes]` for each. Each class is counted
    with one more image that shows it and one that does not, so that folds without any mistake do
    not ask for an infinite slope.

    Reference: Platt, "Probabilistic Outputs for Support Vector Machines and Comparisons to
    Regularized Likelihood Methods", 1999, for the targets that are not quite 0 and 1.
    """
    scores = said.numpy()
    shown = sets.sum(0)
    high, low = (shown + 1) / (shown + 2), 1 / (len(sets) - shown + 2)
    soft = torch.where(sets > 0.5, high, low).numpy()

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = point[0] * scores + point[1:]
        value = np.logaddexp(0, logits) - soft * logits
        slope = (1 / (1 + np.exp(-np.clip(logits, -500, 500))) - soft) / logits.size
        gradient = np.concatenate([[(slope * scores).sum()], slope.sum(0)])
        return float(value.mean()), gradient

    from scipy.optimize import minimize  # loading it takes a third of a second

    start = np.concatenate([[4.0], np.full(scores.shape[1], -2.0)])
    bounds = [_SLOPES, *[(None, None)] * scores.shape[1]]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    slope, offsets = float(found.x[0]), torch.from_numpy(found.x[1:].copy())
    logits = slope * said + offsets
    value = functional.binary_cross_entropy_with_logits(logits, sets).item()
    return value, slope, offsets


def _held_out(span: Span, wanted: Tensor, order: Tensor, folds: int) -> dict[float, Tensor]:
    """Return what every strength says of images that it was not fitted on.

    Images are dealt over the folds in turn, in an `order` in which like ones are neighbours. With
    fewer than three images nothing is held out.
    """
    count = len(wanted)
    if count < 3:
        return {}
    fold_of = torch.empty(count, dtype=torch.long)
    fold_of[order] = torch.arange(count) % min(folds, count)
    found = {strength: torch.zeros_like(wanted) for strength in RIDGE_STRENGTHS}
    for fold in fold_of.unique():
        fit, test = fold_of != fold, fold_of == fold
        for strength, head in ridges(span.data[fit], wanted[fit], span.width, RIDGE_STRENGTHS):
            found[strength][test] = head.logits(span.data[test])
    return found


def _by_rarest(sets: Tensor) -> Tensor:
    """Return an order in which images are sorted by the rarest of their classes."""
    shown = sets.sum(0)
    never = torch.full_like(sets, float("inf"))
    rarest = torch.where(sets > 0.5, shown.expand_as(sets), never).argmin(1)
    return torch.where(sets.sum(1) > 0, rarest, -1).argsort(stable=True)


def numbered(head: Head, mean: float, spread: float) -> Head:
    """Return a head whose outputs are multiplied by `spread` and moved by `mean`."""
    return replace(head, weight=head.weight * spread, bias=head.bias * spread + mean)


def _single(head: Head) -> Head:
    return replace(head, weight=head.weight.float(), bias=head.bias.float())
