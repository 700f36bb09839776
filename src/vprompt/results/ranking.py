"""Ranking: how well scores foretell accuracies, by four correlations and what a choice would lose.

All functions work along the last axis, candidates, and broadcast over the others, so that thousands
of resamples cost one call. What is not defined, as a correlation with a constant, is NaN.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import rankdata

from vprompt.core.errors import VPromptError

Numbers: TypeAlias = NDArray[np.float64]
MEASURES = ("weighted tau", "tau", "Pearson", "Spearman", "regret@1", "regret@3")


@dataclass(frozen=True)
class Problem:
    """One target: `scores` and `accuracies` `[seeds, candidates]` of the same candidates."""

    scores: Numbers
    accuracies: Numbers

    def __post_init__(self) -> None:
        """Check that there is something to rank."""
        if self.scores.shape != self.accuracies.shape or self.scores.ndim != 2:
            raise VPromptError(
                "A ranking needs one score and one accuracy for every seed and candidate, but got "
                f"shapes {self.scores.shape} and {self.accuracies.shape}."
            )
        finite = np.isfinite(self.scores).all() and np.isfinite(self.accuracies).all()
        if self.scores.shape[1] < 2 or not finite:
            raise VPromptError("A ranking needs at least two candidates with finite values.")


def measure(scores: Numbers, accuracies: Numbers) -> dict[str, Numbers]:
    """Return every measure of `MEASURES`; regrets are in the units of the accuracies."""
    found = {
        "weighted tau": weighted_tau(scores, accuracies),
        "tau": kendall_tau(scores, accuracies),
        "Pearson": pearson(scores, accuracies),
        "Spearman": spearman(scores, accuracies),
    }
    return found | {f"regret@{k}": regret(scores, accuracies, k) for k in (1, 3)}


def weighted_tau(scores: Numbers, accuracies: Numbers) -> Numbers:
    """Return Kendall's tau with the weight 1/(r + 1) + 1/(s + 1) on a pair of ranks r and s.

    Mistakes among the best candidates count more. Ranks are by score, ties by accuracy, and the
    other way round; the two results are averaged.

    Reference: Vigna, "A Weighted Correlation Index for Rankings with Ties", WWW 2015,
    arXiv 1404.3325.
    """
    scores, accuracies = np.broadcast_arrays(scores, accuracies)
    both = []
    for first, second in ((scores, accuracies), (accuracies, scores)):
        order = np.lexsort((second, first), axis=-1)[..., ::-1]
        weights = np.empty(order.shape)
        falling = 1 / np.arange(1, order.shape[-1] + 1)
        np.put_along_axis(weights, order, np.broadcast_to(falling, order.shape), axis=-1)
        both.append(_tau(scores, accuracies, weights[..., :, None] + weights[..., None, :]))
    return np.asarray((both[0] + both[1]) / 2)


def kendall_tau(scores: Numbers, accuracies: Numbers) -> Numbers:
    """Return Kendall's tau-b, in which a tie counts neither for nor against."""
    return _tau(scores, accuracies, np.ones(()))


def pearson(scores: Numbers, accuracies: Numbers) -> Numbers:
    """Return the linear correlation."""
    x = scores - scores.mean(-1, keepdims=True)
    y = accuracies - accuracies.mean(-1, keepdims=True)
    # Of equal numbers the mean is not always their value: what is left is rounding, not spread.
    x = np.where(np.ptp(scores, axis=-1, keepdims=True) > 0, x, 0.0)
    y = np.where(np.ptp(accuracies, axis=-1, keepdims=True) > 0, y, 0.0)
    return _ratio((x * y).sum(-1), np.sqrt((x**2).sum(-1)) * np.sqrt((y**2).sum(-1)))


def spearman(scores: Numbers, accuracies: Numbers) -> Numbers:
    """Return the linear correlation of ranks; those that are tied share their mean rank."""
    return pearson(rankdata(scores, axis=-1), rankdata(accuracies, axis=-1))


def regret(scores: Numbers, accuracies: Numbers, k: int, *, relative: bool = False) -> Numbers:
    """Return the best accuracy less the best among the `k` candidates of highest score.

    What a person loses who tries those k. Where scores are tied at the k-th place, it is the mean
    over all ways to choose among them. `relative` divides by the best accuracy.
    """
    if k < 1:
        raise VPromptError(f"A regret is that of at least one candidate, but got k={k}.")
    scores, accuracies = np.broadcast_arrays(scores, accuracies)
    best = np.asarray(accuracies.max(-1))
    count = scores.shape[-1]
    if k >= count:
        return np.zeros_like(best)
    threshold = -np.partition(-scores, k - 1, axis=-1)[..., k - 1 : k]
    above, tied = scores > threshold, scores == threshold
    sure = np.where(above, accuracies, -np.inf).max(-1)
    drawn = k - above.sum(-1)  # places left for those that are tied
    others = np.sort(np.where(tied, accuracies, -np.inf), axis=-1)[..., ::-1]
    # The j-th best of them is the best one drawn with this probability.
    behind = tied.sum(-1)[..., None] - 1 - np.arange(count)
    ways = comb(np.maximum(behind, 0), drawn[..., None] - 1) * (behind >= 0)
    chance = ways / comb(tied.sum(-1), drawn)[..., None]
    value = np.maximum(others, sure[..., None])
    found = best - np.where(chance > 0, chance * np.where(chance > 0, value, 0.0), 0.0).sum(-1)
    return np.asarray(found / best if relative else found)


def average(problems: list[Problem]) -> dict[str, float]:
    """Return every measure's mean over targets, within each over its seeds."""
    each = [measure(problem.scores, problem.accuracies) for problem in problems]
    return {name: _mean([_mean(found[name]) for found in each]) for name in MEASURES}


def bootstrap(
    problems: list[Problem], randomness: np.random.Generator, *, resamples: int = 2000
) -> dict[str, Numbers]:
    """Return every measure's mean over targets `[resamples]`, with targets and candidates redrawn.

    Targets are drawn with replacement, and for each one its candidates, the same for all its seeds.
    """
    slots = randomness.integers(len(problems), size=(resamples, len(problems)))
    found = {name: np.full(slots.shape, np.nan) for name in MEASURES}
    for index, problem in enumerate(problems):
        here = slots == index
        count = problem.scores.shape[1]
        rows = randomness.integers(count, size=(int(here.sum()), count))
        values = measure(problem.scores[:, rows], problem.accuracies[:, rows])
        for name, value in values.items():
            found[name][here] = _means(value, axis=0)
    return {name: _means(value, axis=1) for name, value in found.items()}


def chance(
    problems: list[Problem], randomness: np.random.Generator, *, rankings: int = 2000
) -> dict[str, Numbers]:
    """Return every measure's mean over targets `[rankings]`, of rankings drawn at random."""
    each = []
    for problem in problems:
        seeds, count = problem.accuracies.shape
        scores = randomness.random((seeds, rankings, count))
        values = measure(scores, problem.accuracies[:, None])
        each.append({name: _means(value, axis=0) for name, value in values.items()})
    return {name: _means(np.stack([e[name] for e in each]), axis=0) for name in MEASURES}


def permutation_p_value(
    problems: list[Problem], randomness: np.random.Generator, *, permutations: int = 2000
) -> float:
    """Return how often shuffled candidates reach the mean weighted tau or more; one-sided.

    Within a target the same shuffle is used for all its seeds.

    Reference: Phipson and Smyth, "Permutation P-values should never be zero", 2010.
    """
    observed = average(problems)["weighted tau"]
    if not np.isfinite(observed):
        return float("nan")
    shuffled = []
    for problem in problems:
        count = problem.scores.shape[1]
        orders = randomness.permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)
        taus = weighted_tau(problem.scores[:, orders], problem.accuracies[:, None])
        shuffled.append(_means(taus, axis=0))
    reached = _means(np.stack(shuffled), axis=0) >= observed - 1e-12
    return float((1 + reached.sum()) / (1 + permutations))


def _tau(x: Numbers, y: Numbers, weights: Numbers) -> Numbers:
    """Return how far pairs have the same direction, weighted, of what is possible with the ties."""
    here = np.sign(x[..., :, None] - x[..., None, :])
    there = np.sign(y[..., :, None] - y[..., None, :])
    agreement = (here * there * weights).sum((-1, -2))
    most = np.sqrt((here**2 * weights).sum((-1, -2))) * np.sqrt((there**2 * weights).sum((-1, -2)))
    return _ratio(agreement, most)


def _ratio(above: Numbers | np.float64, below: Numbers | np.float64) -> Numbers:
    """Return a quotient, NaN where nothing lies below; NumPy makes one number of a single row."""
    defined = below > 0
    return np.where(defined, above / np.where(defined, below, 1.0), np.nan)


def _mean(values: Numbers | list[float]) -> float:
    return float(_means(np.asarray(values, dtype=np.float64), axis=0))


def _means(values: Numbers, *, axis: int) -> Numbers:
    """Return means of what is defined, NaN where nothing is."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis), np.float64(1) * defined.sum(axis))
