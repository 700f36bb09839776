"""Placement: how tokens were spread over the blocks, epoch by epoch, and every move between them.

Blue blocks have more tokens than at the start, red ones fewer: the two stay apart for readers who
cannot tell red from green, and an arrow says the same as a change of colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy import linspace

from vprompt.core.errors import VPromptError
from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, CARD, INK, MUTED, QUIET, RULE
from vprompt.report.wording import plural

Run = Mapping[str, Any]

_LEFT, _TOP, _WIDE, _BARS = 44, 62, 374, 94  # pixels
_ROWS = 320  # pixels for all blocks, at most
# Not from the palette of the page: the cells have the same colours in both themes, none so dark
# that an arrow would be lost on it.
_ARROW = "#222222"
_CELLS = LinearSegmentedColormap.from_list("change", colormaps["RdBu"](linspace(0.14, 0.86, 33)))


def history(run: Run) -> Run:
    """Return what a record holds on placement, or raise VPromptError where it holds nothing."""
    found = run.get("tuning", {}).get("memory", {}).get("placement")
    if not found:
        raise VPromptError(
            f"This record has no moves to show: {run.get('method', 'its method')} leaves every "
            "token where it starts. Learn with `--method pro_vpt`."
        )
    return found


def figure(run: Run) -> Figure:
    """Draw the counts per block (rows) and epoch (columns), moves, and the kept distribution."""
    place, kept = history(run), int(run["tuning"]["kept_epoch"])
    counts, decisions = place["distribution"], place["decisions"]
    depth = len(counts[0])
    high = min(26 * depth, _ROWS)
    with canvas.style("placement"):
        drawn, add = canvas.fixed_figure(_TOP + high + 48)
        axes = add(_LEFT, _TOP, _WIDE, high)
        mesh = _heat_map(axes, counts)
        for decision, aside in _beside(decisions):
            _arrow(axes, decision, aside, len(counts))
        _mark_kept(axes, kept, len(counts))
        _bars(add(_LEFT + _WIDE + 14, _TOP, _BARS, high), counts[0], counts[kept])
        _scale(add(_LEFT, 8, 150, 11), mesh, max(1, _largest_change(counts)))
    return drawn


def drawing(run: Run) -> canvas.Drawing:
    """Return the figure, ready for a page or a file."""
    with canvas.style("placement"):
        return canvas.Drawing("placement", figure(run), summary(run))


def summary(run: Run) -> str:
    """Return in one sentence how many tokens moved, and what was refused."""
    place = history(run)
    total, decisions = sum(place["distribution"][0]), place["decisions"]
    moved = [d for d in decisions if d["moved"]]
    here = [d for d in moved if d["from"] == d["to"]]
    text = f"{plural(len(moved) - len(here), 'move')} among {plural(total, 'token')}"
    if here:
        text += f", {len(here)} made anew where they were"
    refused = [d["why"] for d in decisions if not d["moved"]]
    if refused:
        reasons = ", ".join(f"{refused.count(why)} for {why}" for why in sorted(set(refused)))
        text += f"; {len(refused)} refused ({reasons})"
    return text


def flows(run: Run) -> list[dict[str, int]]:
    """Return one row per block: tokens at the start, how many left and came, tokens kept."""
    place, kept = history(run), int(run["tuning"]["kept_epoch"])
    counts = place["distribution"]
    moved = [d for d in place["decisions"] if d["moved"] and d["epoch"] <= kept]
    return [
        {
            "block": block,
            "start": counts[0][block],
            "left": sum(d["from"] == block != d["to"] for d in moved),
            "came": sum(d["to"] == block != d["from"] for d in moved),
            "kept": counts[kept][block],
        }
        for block in range(len(counts[0]))
    ]


def _largest_change(counts: Sequence[Sequence[int]]) -> int:
    return max(abs(a - b) for row in counts for a, b in zip(row, counts[0], strict=True))


def _heat_map(axes: Axes, counts: Sequence[Sequence[int]]) -> Any:
    depth, limit = len(counts[0]), max(1, _largest_change(counts))
    change = [[row[block] - counts[0][block] for row in counts] for block in range(depth)]
    mesh = axes.pcolormesh(
        [index - 0.5 for index in range(len(counts) + 1)],
        range(depth + 1),
        change,
        cmap=_CELLS.resampled(2 * limit + 1),
        vmin=-limit - 0.5,
        vmax=limit + 0.5,
        edgecolors=CARD,
        linewidth=1 if len(counts) <= 40 else 0,
    )
    canvas.strip_frame(axes)
    axes.invert_yaxis()
    axes.set_yticks([index + 0.5 for index in range(depth)], [str(i) for i in range(depth)])
    axes.set_ylabel("block")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "start" if value == 0 else f"{value:g}")
    )
    return mesh


def _beside(decisions: Sequence[Run]) -> list[tuple[Run, float]]:
    """Return all moves, each with its place beside the others of its epoch, in epochs."""
    found = []
    for epoch in sorted({d["epoch"] for d in decisions}):
        moved = [d for d in decisions if d["epoch"] == epoch and d["moved"]]
        step = min(0.3, 0.9 / max(len(moved), 1))
        found += [(d, step * (i - (len(moved) - 1) / 2)) for i, d in enumerate(moved)]
    return found


def _arrow(axes: Axes, decision: Run, aside: float, columns: int) -> None:
    """Draw a move at the border of two epochs, from one block to another."""
    across = decision["epoch"] - 0.5 + aside
    begin, end = decision["from"] + 0.5, decision["to"] + 0.5
    size = 5 if columns <= 40 else 3
    axes.plot([across], [begin], "o", color=_ARROW, markersize=0.8 * size, zorder=3)
    if begin != end:
        style = {"arrowstyle": "-|>", "color": _ARROW, "linewidth": 1.1, "mutation_scale": 2 * size}
        axes.annotate(
            "", (across, end), (across, begin), arrowprops={**style, "shrinkA": 0, "shrinkB": 0}
        )


def _mark_kept(axes: Axes, kept: int, columns: int) -> None:
    name = "kept: the start" if kept == 0 else f"kept: epoch {kept}"
    for side in (-0.5, 0.5):
        axes.axvline(kept + side, color=ACCENT, linewidth=1.6, clip_on=False)
    early = kept < columns / 2
    axes.annotate(
        name,
        (kept - 0.5 if early else kept + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="left" if early else "right",
        va="bottom",
        color=ACCENT,
    )


def _bars(axes: Axes, start: Sequence[int], kept: Sequence[int]) -> None:
    depth = len(start)
    rows = [index + 0.5 for index in range(depth)]
    canvas.strip_frame(axes)
    axes.barh(rows, kept, height=0.62, color=QUIET)
    for row, begin, end in zip(rows, start, kept, strict=True):
        axes.plot([begin, begin], [row - 0.4, row + 0.4], color=INK, linewidth=1.4)
        canvas.write_after(axes, row, max(begin, end), str(end))
    axes.set_xlim(0, 1.35 * max(*start, *kept))
    axes.set_ylim(depth, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("tokens kept\n(line: at the start)")


def _scale(axes: Axes, mesh: Any, limit: int) -> None:
    bar = axes.figure.colorbar(mesh, cax=axes, orientation="horizontal")
    assert bar.solids is not None
    bar.solids.set_edgecolor("face")
    bar.outline.set_edgecolor(RULE)
    minus = "\N{MINUS SIGN}"
    bar.set_ticks([-limit, 0, limit], labels=[f"{minus}{limit}", "0", f"+{limit} tokens"])
    axes.tick_params(length=0, pad=5, labelcolor=MUTED)
