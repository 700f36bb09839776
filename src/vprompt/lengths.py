"""Lengths: how many prompt tokens each block gets, chosen from candidates under a budget."""

from collections.abc import Sequence

from vprompt.errors import VPromptError


def check_candidates(lengths: Sequence[int]) -> list[int]:
    """Return candidate lengths in rising order; two equal ones would share their weight."""
    if len(set(lengths)) < len(lengths) or len(lengths) < 2 or min(lengths) < 0:
        raise VPromptError(
            f"The candidate lengths are at least two different numbers from 0 upwards, but got "
            f"{list(lengths)}. Write `lengths=[0, 5, 10, 20]`."
        )
    return sorted(lengths)


def choose(
    scores: Sequence[Sequence[float]], candidates: Sequence[int], max_total: int | None = None
) -> list[int]:
    """Return for every block the index of the candidate to keep, of the largest sum of scores.

    `scores` holds a row of one number per candidate for every block, `candidates` the lengths in
    rising order. With `max_total` the lengths together are at most that, and the choice is the
    best such one. Of equal choices the shorter wins.
    """
    depth = len(scores)
    if max_total is None or max_total >= depth * candidates[-1]:
        return [max(range(len(row)), key=lambda index: (row[index], -index)) for row in scores]
    if max_total < depth * candidates[0]:
        raise VPromptError(
            f"At most {max_total} tokens are wanted, but {depth} blocks of at least "
            f"{candidates[0]} have more. Add 0 to the candidate lengths, or allow more tokens."
        )
    # best[total] is the largest sum of scores of the blocks so far at exactly that many tokens.
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for row in scores:
        reached: dict[int, tuple[float, list[int]]] = {}
        for total, (value, chosen) in best.items():
            for index, length in enumerate(candidates):
                after = total + length
                if after > max_total:
                    break
                if after not in reached or value + row[index] > reached[after][0]:
                    reached[after] = (value + row[index], [*chosen, index])
        best = reached
    return max(best.items(), key=lambda entry: (entry[1][0], -entry[0]))[1][1]
