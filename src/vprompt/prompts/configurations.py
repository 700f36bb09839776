"""Configurations: how many prompt tokens every block of every branch has, and controls for one.

A search is worth its time only if what it finds beats configurations that anyone could have
written down: uniform, drawn at random, with the layers shuffled, with the branches swapped.

Reference: Li and Talwalkar, "Random Search and Reproducibility for Neural Architecture Search",
UAI 2019, arXiv 1902.07638, for the random control.
"""

import itertools
from collections.abc import Mapping, Sequence

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import numpy_stream
from vprompt.prompts.lengths import check_candidates

# The length of every block, by branch: `{"image": [0, 5, 10, ...]}`, on a CLIP `text` as well.
Configuration = dict[str, list[int]]


def parameters(configuration: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> int:
    """Return how many numbers the prompts hold; `widths` are the branches' token widths."""
    _check_widths(configuration, widths)
    return sum(widths[branch] * sum(lengths) for branch, lengths in configuration.items())


def uniform(configuration: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> Configuration:
    """Return as many parameters spread evenly: no two blocks differ by more than one token.

    Where the branches' widths leave a remainder that no token fits, the count is the largest below.
    """
    budget = parameters(configuration, widths)
    depths = {branch: len(lengths) for branch, lengths in configuration.items()}
    each = budget // sum(widths[branch] * depth for branch, depth in depths.items())
    rest = budget - each * sum(widths[branch] * depth for branch, depth in depths.items())
    chosen: tuple[int, ...] = ()
    best = -1
    for extra in itertools.product(*(range(depth + 1) for depth in depths.values())):
        used = sum(widths[b] * count for b, count in zip(depths, extra, strict=True))
        if best < used <= rest:
            chosen, best = extra, used
    return {
        branch: [each + more for more in _spread(count, depths[branch])]
        for branch, count in zip(depths, chosen, strict=True)
    }


def random_of_equal_count(
    configuration: Mapping[str, Sequence[int]],
    candidates: Sequence[int],
    widths: Mapping[str, int],
    *,
    seed: int,
) -> Configuration:
    """Return one of all configurations of exactly as many parameters, each as probable.

    Every block of every branch takes one of `candidates`. Raises VPromptError where none has that
    many parameters.
    """
    lengths, budget = check_candidates(candidates), parameters(configuration, widths)
    places = [branch for branch, row in configuration.items() for _ in row]
    # ways[i][left] is in how many ways the blocks from i on use up exactly `left` parameters.
    ways: list[dict[int, int]] = [{0: 1}]
    for branch in reversed(places):
        counted: dict[int, int] = {}
        for left, number in ways[0].items():
            for length in lengths:
                after = left + widths[branch] * length
                if after <= budget:
                    counted[after] = counted.get(after, 0) + number
        ways.insert(0, counted)
    if budget not in ways[0]:
        raise VPromptError(
            f"No configuration of the lengths {lengths} has {budget} parameters, as the one to "
            "compare with has. Name the candidates that it was chosen from."
        )
    rng, left = numpy_stream(seed, "random configuration"), budget
    found: Configuration = {branch: [] for branch in configuration}
    for branch, behind in zip(places, ways[1:], strict=True):
        options = [(n, behind.get(left - widths[branch] * n, 0)) for n in lengths]
        whole = sum(number for _, number in options)
        length = rng.choice(lengths, p=[number / whole for _, number in options])
        found[branch].append(int(length))
        left -= widths[branch] * int(length)
    return found


def shuffled(configuration: Mapping[str, Sequence[int]], *, seed: int) -> Configuration:
    """Return the same lengths at other blocks of their branch, the order drawn at random.

    The order is never the one given, unless all blocks of a branch are alike.
    """
    found: Configuration = {}
    for branch, lengths in configuration.items():
        rng, order = numpy_stream(seed, f"shuffled, {branch}"), list(lengths)
        while order == list(lengths) and len(set(lengths)) > 1:
            order = rng.permutation(lengths).tolist()
        found[branch] = order
    return found


def swapped(configuration: Mapping[str, Sequence[int]]) -> Configuration:
    """Return a CLIP's configuration with the lengths of its two branches exchanged.

    Raises VPromptError unless there are two branches with as many blocks. Where their widths
    differ, so does the number of parameters.
    """
    depths = {branch: len(lengths) for branch, lengths in configuration.items()}
    if len(depths) != 2 or len(set(depths.values())) != 1:
        raise VPromptError(
            f"Two branches of as many blocks can be swapped, but got {depths or 'none'} (blocks "
            "by branch)."
        )
    one, two = depths
    return {one: list(configuration[two]), two: list(configuration[one])}


def _spread(count: int, depth: int) -> list[int]:
    """Return `depth` zeros and ones of which `count` are one, at even distances."""
    return [(block + 1) * count // depth - block * count // depth for block in range(depth)]


def _check_widths(configuration: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> None:
    missing = sorted(set(configuration) - set(widths))
    if missing or not configuration:
        raise VPromptError(
            f"A configuration needs the width of every branch, but there is none of "
            f"{missing or 'any'}. Give `widths={{'image': backbone.dim}}`."
        )
