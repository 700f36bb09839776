"""Solvers: other ways than `simplex.maximise` to climb, for comparison and for fidelity."""

from collections.abc import Callable

import torch

from vprompt.core.types import Weights
from vprompt.pooling.simplex import Objective, Optimum


def leave_one_out_sgd(
    objective: Objective, start: Weights, *, steps: int = 1000, rate: float = 0.005
) -> Optimum:
    """Climb with all weights free but the last, which is 1 less their sum; they may turn negative.

    What the group behind the paper released for its predecessor, H-ensemble: plain steps of one
    size, no projection. The gradient of a free weight is its own less that of the last.
    """
    alpha = start.double().clone()
    for _ in range(steps):
        _, gradient = objective(alpha)
        alpha[:-1] += rate * (gradient[:-1] - gradient[-1])
        alpha[-1] = 1 - alpha[:-1].sum()
    return _finished(objective, alpha, steps)


def softmax_adam(
    objective: Objective, start: Weights, *, steps: int = 500, rate: float = 0.1
) -> Optimum:
    """Climb on the logits of the weights with Adam; no weight can become exactly zero."""
    logits = start.double().clamp_min(1e-30).log().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=rate)
    for _ in range(steps):
        alpha = logits.softmax(0)
        _, gradient = objective(alpha.detach())
        optimizer.zero_grad(set_to_none=True)
        alpha.backward(-gradient)
        optimizer.step()
    return _finished(objective, logits.detach().softmax(0), steps)


def projected_gradient(
    objective: Objective, start: Weights, *, steps: int = 500, tolerance: float = 1e-6
) -> Optimum:
    """Climb by steps of adapted size, each followed by the nearest point of the simplex."""
    alpha = start.double()
    value, gradient = objective(alpha)
    rate = 1 / max(float(gradient.norm()), 1e-12)
    for step in range(steps):
        if float(gradient.max() - alpha @ gradient) < tolerance:
            return _finished(objective, alpha, step)
        for _ in range(30):
            trial = project(alpha + rate * gradient)
            trial_value, trial_gradient = objective(trial)
            if trial_value > value:
                break
            rate /= 2
        else:
            return _finished(objective, alpha, step)  # no step climbs: rounding is reached
        alpha, value, gradient = trial, trial_value, trial_gradient
        rate *= 2
    return _finished(objective, alpha, steps)


def pairwise_frank_wolfe(
    objective: Objective,
    start: Weights,
    *,
    steps: int = 500,
    tolerance: float = 1e-6,
    support: int | None = None,
) -> Optimum:
    """Move weight from the worst source that has any to the best one, and search how much.

    Sparse by construction, so it suits large pools: from a vertex, a step adds one source at most.
    Once `support` sources have weight, it moves among them alone. The search halves the share,
    from `objective.best_share` where there is one: the best share in closed form.

    Reference: Lacoste-Julien and Jaggi, "On the Global Linear Convergence of Frank-Wolfe
    Optimization Variants", NeurIPS 2015, arXiv 1511.05932.
    """
    alpha = start.double()
    value, gradient = objective(alpha)
    best_share = getattr(objective, "best_share", None)
    for step in range(steps):
        full = support is not None and int((alpha > 0).sum()) >= support
        open_to = torch.where(alpha > 0, gradient, -torch.inf) if full else gradient
        if float(open_to.max() - alpha @ gradient) < tolerance:
            return _finished(objective, alpha, step)
        to = int(open_to.argmax())
        away = int(torch.where(alpha > 0, gradient, torch.inf).argmin())
        share = float(alpha[away])
        if best_share is not None:
            share = best_share(alpha, to, away)
        climbed = False
        for _ in range(30):
            trial = alpha.clone()
            trial[away] -= share
            trial[to] += share
            trial_value, trial_gradient = objective(trial)
            if trial_value > value:
                alpha, value, gradient, climbed = trial, trial_value, trial_gradient, True
                break
            share /= 2
        if not climbed:
            return _finished(objective, alpha, step)
    return _finished(objective, alpha, steps)


def project(point: Weights) -> Weights:
    """Return the nearest point of the simplex, by sorting."""
    ordered = point.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1, dtype=point.dtype)
    kept = int((ordered > excess).sum())
    return (point - excess[kept - 1]).clamp_min(0)


def _finished(objective: Objective, alpha: Weights, steps: int) -> Optimum:
    value, gradient = objective(alpha)
    return Optimum(alpha, value, float(gradient.max() - alpha @ gradient), steps)


SOLVERS: dict[str, Callable[[Objective, Weights], Optimum]] = {
    "projected": projected_gradient,
    "frank_wolfe": pairwise_frank_wolfe,
    "softmax_adam": softmax_adam,
    "leave_one_out_sgd": leave_one_out_sgd,
}
