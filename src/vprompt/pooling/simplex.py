"""Simplex: maximise a smooth function of weights that are non-negative and sum to one.

Exponentiated gradient with backtracking from several starts: the objective is not convex, and two
sources with opposite class signal already give two optima.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vprompt.core.types import Weights

Objective = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True, eq=False)
class Optimum:
    """Where one start ended: weights, objective, Frank-Wolfe gap, steps taken."""

    weights: Weights
    value: float
    gap: float
    steps: int


def maximise(
    objective: Objective, start: Weights, *, steps: int = 500, tolerance: float = 1e-6
) -> Optimum:
    """Climb from a start with all weights positive until the Frank-Wolfe gap is small.

    The gap bounds what any step towards a vertex could still gain to first order.
    """
    alpha = start.double()
    value, gradient = objective(alpha)
    rate = 3 / _spread(gradient)
    for step in range(steps):
        gap = float(gradient.max() - alpha @ gradient)
        if gap < tolerance:
            return Optimum(alpha, value, gap, step)
        for _ in range(12):
            trial = _exponential_step(alpha, gradient, rate)
            trial_value, trial_gradient = objective(trial)
            if trial_value >= value - 1e-12:
                break
            rate /= 3
        else:
            break  # no step climbs: as good as rounding allows
        alpha, value, gradient = trial, trial_value, trial_gradient
        rate *= 2
    return Optimum(alpha, value, float(gradient.max() - alpha @ gradient), steps)


def starts(sources: int, best_single: int, *, most: int = 32) -> list[Weights]:
    """Return uniform, and for small pools every softened vertex, else the best single one."""
    uniform = torch.full((sources,), 1 / sources, dtype=torch.float64)
    if sources == 1:
        return [uniform]
    corners = range(sources) if sources <= most else [best_single]
    softened = []
    for corner in corners:
        start = torch.full((sources,), 0.1 / (sources - 1), dtype=torch.float64)
        start[corner] = 0.9
        softened.append(start)
    return [uniform, *softened]


def distinct(optima: list[Optimum]) -> list[Optimum]:
    """Return the different optima, best first; among equals the one of the earliest start.

    Two are different in value to 4 digits or in support.
    """
    seen: dict[tuple[float, tuple[int, ...]], Optimum] = {}
    for found in sorted(optima, key=lambda optimum: -round(optimum.value, 9)):
        support = tuple((found.weights > 1e-3).nonzero().flatten().tolist())
        seen.setdefault((round(found.value, 4), support), found)
    return list(seen.values())


def _exponential_step(alpha: Tensor, gradient: Tensor, rate: float) -> Tensor:
    logits = alpha.clamp_min(1e-300).log() + rate * (gradient - gradient.max())
    return torch.softmax(logits, 0)


def _spread(gradient: Tensor) -> float:
    return max(float(gradient.max() - gradient.min()), 1e-12)
