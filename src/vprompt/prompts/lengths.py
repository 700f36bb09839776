"""Lengths: how many prompt tokens each block gets, chosen from candidates under a budget."""

from collections.abc import Sequence

from vprompt.core.errors import VPromptError


def check_candidates(lengths: Sequence[int]) -> list[int]:
    """Return candidate lengths in rising order; two equal ones would share their weight."""
    if len(set(lengths)) < len(lengths) or len(lengths) < 2 or min(lengths) < 0:
        raise VPromptError(
            f"The candidate lengths are at least two different numbers from 0 upwards, but got "
            f"{list(lengths)}. Write `lengths=[0, 5, 10, 20]`."
        )
    return sorted(lengths)


def choose(
    scores: Sequence[Sequence[float]],
    candidates: Sequence[int],
    max_total: int | None = None,
    *,
    widths: Sequence[int] | None = None,
    exact: bool = False,
) -> list[int]:
    """Return for every block the index of the candidate to keep, of the largest sum of scores.

    `scores` holds a row of one number per candidate for every block, `candidates` the lengths in
    rising order. With `max_total` the lengths together are at most that, or with `exact` exactly
    that, and the choice is the best such one. `widths` are what a token of each block costs, where
    not 1. Of equal choices the cheaper wins.
    """
    costs = [1] * len(scores) if widths is None else list(widths)
    largest = sum(costs) * candidates[-1]
    if max_total is None or (max_total >= largest and not exact):
        return [max(range(len(row)), key=lambda index: (row[index], -index)) for row in scores]
    # best[total] is the largest sum of scores of the blocks so far at exactly that total.
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for row, cost in zip(scores, costs, strict=True):
        reached: dict[int, tuple[float, list[int]]] = {}
        for total, (value, chosen) in best.items():
            for index, length in enumerate(candidates):
                after = total + cost * length
                if after > max_total:
                    break
                if after not in reached or value + row[index] > reached[after][0]:
                    reached[after] = (value + row[index], [*chosen, index])
        best = reached
    if exact:
        best = {total: found for total, found in best.items() if total == max_total}
    if not best:
        raise VPromptError(_nothing_fits(candidates, costs, max_total, exact))
    return max(best.items(), key=lambda entry: (entry[1][0], -entry[0]))[1][1]


def _nothing_fits(
    candidates: Sequence[int], costs: Sequence[int], max_total: int, exact: bool
) -> str:
    smallest, what = sum(costs) * candidates[0], "tokens" if set(costs) <= {1} else "parameters"
    if exact and max_total >= smallest:
        return (
            f"No choice of the lengths {list(candidates)} for {len(costs)} blocks has exactly "
            f"{max_total} {what}. Name another number, or the candidates that it came from."
        )
    return (
        f"At most {max_total} {what} are wanted, but {len(costs)} blocks of at least "
        f"{candidates[0]} tokens have more: {smallest}. Add 0 to the candidate lengths, or allow "
        "more."
    )
