"""Scales: how a task's held-out accuracy changes along a pool's moves, and how large they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vprompt.core.errors import VPromptError
from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, INK, MUTED, QUIET, RULE, Drawing
from vprompt.report.wording import signed

Run = Mapping[str, Any]
MOST_SOURCES = 24  # bars of sizes that fit beside the path


def moves_of(run: Run) -> Run:
    """Return what a record holds on its moves, or raise VPromptError where it holds nothing."""
    found = run.get("moves")
    if not isinstance(found, Mapping) or not found.get("path"):
        raise VPromptError(
            f"This record has no scales to draw: {run.get('method', 'its method')} made a convex "
            "sum. Run `vprompt combine` with --move-scale auto."
        )
    return found


def drawing(run: Run) -> Drawing:
    """Draw held-out accuracy and likeness over the scale, and the size of every source's move."""
    moves = moves_of(run)
    with canvas.style("scales"):
        sizes = sorted(moves["sizes"].items(), key=lambda pair: -pair[1])[:MOST_SOURCES]
        figure = canvas.new_figure(max(250, 70 + 22 * len(sizes)), canvas.WIDE)
        path, bars = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_path(path, moves)
        _draw_sizes(bars, sizes)
        return Drawing("scales", figure, summary(run))


def summary(run: Run) -> str:
    """Return in one sentence which scales were looked at and what was taken."""
    moves = moves_of(run)
    scales = [point["name"] for point in moves["path"]]
    taken = moves["chosen"]
    if "members" in moves:
        taken = f"an ensemble of {len(moves['members'])} at x{moves['member_scale']:g}"
    return f"Looked at {', '.join(scales)}; taken: {taken}. {moves['verdict']}"


def write_scale_path(run: Run, path: Path) -> None:
    """Write the drawing to an .svg or .png file."""
    drawing(run).save(path)


def _draw_path(axes: Axes, moves: Run) -> None:
    """Draw accuracies as dots on a line from the start; no prompt is a level line."""
    canvas.strip_frame(axes, keep=("bottom",))
    axes.set_title("held-out accuracy, in per cent", fontsize=12.5, color=MUTED, loc="left", pad=8)
    axes.yaxis.grid(True)
    taken = [] if "members" in moves else [moves["chosen"]]
    points = [p for p in moves["path"] if p["name"] != "no prompt" and not p["problem"]]
    places = {point["name"]: place for place, point in enumerate(points)}
    judged = [p for p in points if p["cv_accuracy"] is not None]
    plain = next((p for p in moves["path"] if p["name"] == "no prompt"), None)
    if plain is not None and plain["cv_accuracy"] is not None:
        value = 100 * plain["cv_accuracy"]
        axes.axhline(value, color=INK, linewidth=1.3, linestyle=(0, (5, 3)))
        axes.text(
            len(points) - 0.6, value, "no prompt", color=INK, va="bottom", ha="right", fontsize=11.5
        )
    axes.plot(
        [places[p["name"]] for p in judged],
        [100 * p["cv_accuracy"] for p in judged],
        color=QUIET,
        linewidth=1.6,
        zorder=2,
    )
    for point in judged:
        chosen = point["name"] in taken
        axes.plot(
            [places[point["name"]]],
            [100 * point["cv_accuracy"]],
            "o",
            color=ACCENT if chosen else QUIET,
            markersize=9 if chosen else 6,
            zorder=3,
        )
    held = moves.get("held_out")
    if "members" in moves and held:
        value = 100 * held["accuracy"]
        axes.axhline(value, color=ACCENT, linewidth=1.6)
        axes.text(
            -0.4,
            value,
            f"ensemble of {len(moves['members'])}",
            color=ACCENT,
            va="bottom",
            ha="left",
            fontsize=11.5,
        )
    if not judged:
        axes.text(0.5, 0.5, "nothing could be held out", transform=axes.transAxes, ha="center")
    axes.set_xlim(-0.5, max(len(points) - 0.5, 0.5))
    axes.set_xticks(
        range(len(points)), [f"{p['name']}\n{p['alike']:.2f}" for p in points], color=MUTED
    )
    axes.set_xlabel("scale of the move; below it, how alike the features still are")
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _draw_sizes(axes: Axes, sizes: list[tuple[str, float]]) -> None:
    canvas.strip_frame(axes)
    axes.set_title("size of each source's move", fontsize=12.5, color=MUTED, loc="left", pad=8)
    canvas.label_rows(axes, [name for name, _ in sizes])
    axes.barh(range(len(sizes)), [value for _, value in sizes], height=0.6, color=QUIET)
    for row, (_, value) in enumerate(sizes):
        canvas.write_after(axes, row, value, signed(value, 2))
    axes.set_xlim(0, 1.25 * max([value for _, value in sizes] or [1.0]))
    axes.set_xticks([])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(0, color=RULE, linewidth=1)
