"""Searched: how a search weighed the candidate lengths of every block, and what it chose.

One row of heat maps per branch, a map for every candidate: blocks downwards, epochs across. Beside
it stands the chosen length of every block, with a line where uniform lengths would end.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from vprompt.core.errors import VPromptError
from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, CARD, INK, MUTED, QUIET, WIDTH
from vprompt.report.wording import plural, signed

Run = Mapping[str, Any]
Weights = list[list[list[float]]]  # [epochs + 1][blocks][candidates]

_LEFT, _TOP, _BELOW, _BETWEEN, _BARS = 44, 64, 48, 76, 104  # pixels
_GAP = 13  # pixels between two maps, where the mark of the chosen length stands
_ROW, _ROWS = 22, 300  # pixels of a block, and of all of them at most


def history(run: Run) -> Run:
    """Return what a record holds on its search, or raise VPromptError where it holds nothing."""
    tuning = run.get("search", run).get("tuning", {})
    found = tuning.get("memory") or {}
    if "candidates" not in found or "alpha" not in found:
        raise VPromptError(
            f"This record has no search to show: {run.get('method', 'its method')} was given its "
            "lengths. Run `vprompt search`."
        )
    return found


def branches(run: Run) -> dict[str, tuple[Weights, list[int]]]:
    """Return the weights of the candidates over the epochs, and the choice, by branch.

    Weights are the softmax of alpha, less the price of a token where a budget bound.
    """
    memory = history(run)
    alpha, found = memory["alpha"], memory["found"][-1]
    if not isinstance(found, Mapping):
        name = memory.get("branch", "image")
        alpha, found = [{name: rows} for rows in alpha], {name: found}
    prices = memory.get("prices") or [dict.fromkeys(found, 0.0)] * len(alpha)
    return {
        name: (
            [
                [_softmax(row, price[name], memory["candidates"]) for row in epoch[name]]
                for epoch, price in zip(alpha, prices, strict=True)
            ],
            list(lengths),
        )
        for name, lengths in found.items()
    }


def rows(run: Run) -> list[dict[str, Any]]:
    """Return one row per branch and block: the length found and the candidates' last weights."""
    candidates = history(run)["candidates"]
    return [
        {
            "branch": name,
            "block": block,
            "found": length,
            "weights": dict(zip(map(str, candidates), weights[-1][block], strict=True)),
        }
        for name, (weights, found) in branches(run).items()
        for block, length in enumerate(found)
    ]


def summary(run: Run) -> str:
    """Return in one sentence what was found, and how sure the search is of it."""
    memory, found = history(run), rows(run)
    total = sum(row["found"] for row in found)
    empty = sum(not row["found"] for row in found)
    sure = sum(row["weights"][str(row["found"])] for row in found) / len(found)
    text = f"{plural(total, 'token')} in {plural(len(found), 'block')}, none in {empty}"
    text += f"; mean weight of the chosen length {signed(sure, 2)}"
    text += f", by chance {signed(1 / len(memory['candidates']), 2)}"
    gap = memory.get("gap")
    if gap:
        points = signed(100 * gap["gap"], 1)
        text += f"; the mixture's validation accuracy less that of the choice: {points} points"
    return text


def drawing(run: Run) -> canvas.Drawing:
    """Return the figure, ready for a page or a file."""
    with canvas.style("searched"):
        return canvas.Drawing("searched", figure(run), summary(run))


def figure(run: Run) -> Figure:
    """Draw the weights of all candidates over blocks and epochs, and the lengths found."""
    candidates, shown = history(run)["candidates"], branches(run)
    highs = [min(_ROW * len(found), _ROWS) for _, found in shown.values()]
    top = max(v for weights, _ in shown.values() for epoch in weights for row in epoch for v in row)
    limit = max(math.ceil(10 * top) / 10, 0.1)
    wide = (WIDTH - _LEFT - _BARS - 16 - _GAP * len(candidates)) / len(candidates)
    with canvas.style("searched"):
        drawn, add = canvas.fixed_figure(_TOP + sum(highs) + (len(highs) - 1) * _BETWEEN + _BELOW)
        above: float = _TOP
        for (name, (weights, found)), high in zip(shown.items(), highs, strict=True):
            for index, length in enumerate(candidates):
                axes = add(_LEFT + index * (wide + _GAP), above, wide, high)
                mesh = _heat_map(axes, [[row[index] for row in epoch] for epoch in weights], limit)
                _mark_chosen(axes, [block for block, n in enumerate(found) if n == length])
                unit = " tokens" if index == len(candidates) - 1 else ""
                axes.set_title(f"{length}{unit}", fontsize=12, color=INK, pad=5)
                if index == 0:
                    _name_blocks(axes, found, name if len(shown) > 1 else "")
            _profile(add(WIDTH - _BARS, above, _BARS - 4, high), found)
            above += high + _BETWEEN
        ticks = {0.0: "0", limit: f"weight {signed(limit, 1)}"}
        canvas.colour_scale(add(_LEFT, 8, 150, 11), mesh, ticks)
    return drawn


def _softmax(row: Sequence[float], price: float, lengths: Sequence[int]) -> list[float]:
    paid = [value - price * length for value, length in zip(row, lengths, strict=True)]
    powers = [math.exp(value - max(paid)) for value in paid]
    return [power / sum(powers) for power in powers]


def _heat_map(axes: Axes, weights: Sequence[Sequence[float]], limit: float) -> Any:
    epochs, depth = len(weights), len(weights[0])
    mesh = axes.pcolormesh(
        [epoch - 0.5 for epoch in range(epochs + 1)],
        range(depth + 1),
        [[row[block] for row in weights] for block in range(depth)],
        cmap=canvas.LIGHTNESS,
        vmin=0,
        vmax=limit,
        edgecolors=CARD,
        linewidth=0.6 if epochs <= 12 else 0,
    )
    canvas.strip_frame(axes)
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xlabel("epoch", labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(2, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(axis="x", labelsize=11)
    return mesh


def _mark_chosen(axes: Axes, blocks: Sequence[int]) -> None:
    """Put a dot behind the rows of the blocks that took this length."""
    assert isinstance(axes.figure, Figure)
    aside = ScaledTranslation(_GAP / 2 / 72, 0, axes.figure.dpi_scale_trans)
    axes.plot(
        [1] * len(blocks),
        [block + 0.5 for block in blocks],
        "o",
        color=ACCENT,
        markersize=5.5,
        markeredgewidth=0,
        clip_on=False,
        transform=axes.get_yaxis_transform() + aside,
    )


def _name_blocks(axes: Axes, found: Sequence[int], branch: str) -> None:
    step = math.ceil(len(found) / 24)
    shown = range(0, len(found), step)
    axes.set_yticks([block + 0.5 for block in shown], [str(block) for block in shown])
    axes.set_ylabel(f"block, {branch}" if branch else "block")


def _profile(axes: Axes, found: Sequence[int]) -> None:
    """Draw the found lengths as bars, and where every bar would end if all were alike."""
    depth, even = len(found), sum(found) / len(found)
    canvas.strip_frame(axes)
    axes.barh([block + 0.5 for block in range(depth)], found, height=0.62, color=QUIET)
    for block, length in enumerate(found):
        canvas.write_after(axes, block + 0.5, max(length, even), str(length))
    axes.axvline(even, color=INK, linewidth=1.4)
    axes.set_xlim(0, 1.45 * max(*found, 1))
    axes.set_ylim(depth, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"found (line:\nuniform, {even:.3g})")
    axes.set_title(f"{sum(found)} in all", fontsize=12, color=MUTED, pad=5)
