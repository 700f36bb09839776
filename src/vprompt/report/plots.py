"""Plots: every figure of the report, each a function from recorded numbers to a drawing."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, CARD, INK, MUTED, QUIET, RULE, SECOND, Drawing
from vprompt.report.wording import Number, duration, percent, signed

MOST_SOURCES = 40  # more rows than this are a table, not a picture
MOST_ANNOTATED = 15  # sources up to which every cell of the heat map has room for its number

# How the H-scores that sources are compared with are drawn, by name.
_REFERENCES: dict[str, tuple[str, Any]] = {
    "frozen features": (INK, (0, (5, 3))),
    "fused features": (SECOND, (0, (1, 2))),
    "uniform sum": (QUIET, "-"),
    "weighted sum": (ACCENT, "-"),
    "noise floor": (RULE, (0, (2, 2))),
}

Row = Mapping[str, Any]


def accuracies(tests: Sequence[tuple[str, Row]], final: str) -> Drawing:
    """Draw the test accuracy of every candidate as a dot on its interval."""
    names = [name for name, _ in tests]
    with canvas.style("accuracies"):
        figure = canvas.new_figure(64 + 34 * len(tests))
        axes = figure.add_subplot()
        canvas.strip_frame(axes, keep=("bottom",))
        canvas.label_rows(axes, names)
        axes.xaxis.grid(True)
        for row, (name, found) in enumerate(tests):
            colour = ACCENT if name == final else QUIET
            low, high, share = (100 * found[key] for key in ("low", "high", "acc1"))
            axes.plot([low, high], [row, row], color=colour, linewidth=3, alpha=0.45, zorder=2)
            axes.plot([share], [row], "o", color=colour, markersize=8.5, zorder=3)
            canvas.write_beside(axes, row, percent(found["acc1"]), bold=name == final)
            if name == final:
                axes.get_yticklabels()[row].set_fontweight("bold")
        _limit_to_what_differs(axes, [found for _, found in tests])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("test images classified correctly, in per cent")
        best = max(tests, key=lambda pair: pair[1]["acc1"])
        text = f"Test accuracy of {len(tests)} candidates; the highest is {best[0]} with "
        return Drawing("accuracies", figure, text + percent(best[1]["acc1"]))


def weights(sources: Sequence[Row], references: Sequence[tuple[str, Number]]) -> Drawing:
    """Draw the weight of every source, and next to it the H-score of the source alone."""
    sources = sources[:MOST_SOURCES]
    count = len(sources)
    names = [source["name"] for source in sources] + [name for name, _ in references]
    with canvas.style("weights"):
        figure = canvas.new_figure(62 + 25 * len(names))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        for axes, title in ((left, "weight in the sum"), (right, "H-score on the target")):
            canvas.strip_frame(axes, keep=("bottom",))
            axes.set_title(title, fontsize=12.5, color=MUTED, loc="left", pad=8)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        canvas.label_rows(left, names)
        _weight_bars(left, sources)
        right.xaxis.grid(True)
        for row, source in enumerate(sources):
            canvas.write_beside(right, row, signed(source["hscore"], 3), bold=False)
            if source["hscore"] is not None:
                right.plot([source["hscore"]], [row], "o", color=QUIET, markersize=7)
        for row, (name, value) in enumerate(references, count):
            colour, dashes = _REFERENCES[name]
            right.plot([value, value], [-0.6, row], color=colour, linewidth=1.3, linestyle=dashes)
            right.plot([value], [row], "D", color=colour, markersize=6.5)
            canvas.write_beside(right, row, signed(value, 3), bold=False)
        if references:
            for axes in (left, right):
                axes.axhline(count - 0.5, color=RULE, linewidth=1)
        canvas.widen(right, 0.05)
        text = f"Weights and H-scores of {count} sources; the heaviest is {names[0]} with "
        return Drawing("weights", figure, text + signed(sources[0]["weight"], 3))


def cosines(names: Sequence[str], matrix: Sequence[Sequence[Number]]) -> Drawing:
    """Draw how far the sources' gradients agree, as a matrix coloured around zero.

    A source without a gradient, whose cosine with itself is 0, has a dash in place of numbers.
    """
    silent = {index for index, row in enumerate(matrix) if not row[index]}
    shown = [
        [None if {row, column} & silent else value for column, value in enumerate(values)]
        for row, values in enumerate(matrix)
    ]
    labels = [canvas.shorten(name, 18) for name in names[:MOST_SOURCES]]
    count = len(labels)
    with canvas.style("cosines"):
        size, turn = (12.5, 40) if count <= 20 else (9, 90)
        margin = 12 + max(canvas.width_of(label, size) for label in labels)
        side = min(46 * count, canvas.WIDTH - margin - 12)
        below = margin * math.sin(math.radians(turn)) + 10
        figure, place = canvas.fixed_figure(56 + side + below)
        axes = place(margin, 56, side, side)
        mesh = axes.pcolormesh(
            np.array([row[:count] for row in shown[:count]], dtype=float),
            cmap=colormaps["RdBu"].resampled(41),
            vmin=-1,
            vmax=1,
            edgecolors=CARD,
            linewidth=1,
        )
        canvas.strip_frame(axes)
        middles = [index + 0.5 for index in range(count)]
        axes.set_yticks(middles, labels, fontsize=size)
        axes.set_xticks(middles, labels, fontsize=size, rotation=turn, ha="right")
        axes.tick_params(axis="x", labelcolor=INK)
        for label in axes.get_xticklabels():
            label.set(rotation_mode="anchor", va="center" if turn == 90 else "top")
        axes.invert_yaxis()
        if count <= MOST_ANNOTATED:
            for row, column in itertools.product(range(count), repeat=2):
                value = shown[row][column]
                canvas.write_cell(axes, mesh, row, column, value, 12 if count <= 8 else 10.5)
        ends = {-1.0: signed(-1, 0) + " opposite", 0.0: "0", 1.0: "1 same"}
        canvas.colour_scale(place(margin, 6, 240, 12), mesh, ends)
        text = f"Cosines between the prompt gradients of {count} sources"
        return Drawing("cosines", figure, text)


def curve(history: Sequence[Row], kept_epoch: int) -> Drawing:
    """Draw what validation says and the losses by epoch, with the kept epoch marked."""
    measure = history[0].get("val_measure") or "accuracy"
    accuracy = _points(history, "val_accuracy" if measure == "accuracy" else "val_score")
    scale = 1 if measure == "R2" else 100
    losses = {
        "validation": _points(history, "val_loss"),
        "training": _points(history, "train_loss"),
    }
    panels = (1 if accuracy else 0) + (1 if any(losses.values()) else 0)
    with canvas.style("curve"):
        figure = canvas.new_figure(50 + 165 * panels)
        stack = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
        for axes in stack:
            canvas.strip_frame(axes, keep=("bottom",))
            axes.yaxis.grid(True)
            axes.tick_params(axis="y", labelcolor=MUTED)
            axes.axvline(kept_epoch, color=ACCENT, linewidth=1.2, alpha=0.55)
        if accuracy:
            _line(stack[0], [(x, scale * y) for x, y in accuracy], ACCENT, kept_epoch)
            stack[0].set_ylabel(f"validation {measure}" + ", %" * (scale > 1))
            stack[0].yaxis.set_major_locator(MaxNLocator(5))
        if any(losses.values()):
            _line(stack[-1], losses["training"], SECOND, None, "training", dashed=True)
            _line(stack[-1], losses["validation"], ACCENT, kept_epoch, "validation")
            _scale_losses(stack[-1], [y for line in losses.values() for _, y in line])
            stack[-1].legend(loc="best", labelcolor=INK, handlelength=2.2)
        figure.align_ylabels(stack)
        kept = "kept: the start" if kept_epoch == 0 else f"kept: epoch {kept_epoch}"
        last = history[-1]["epoch"]
        _name_line(stack[0], kept, kept_epoch, last)
        stack[-1].set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
        stack[-1].xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
        stack[-1].xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: "start" if value == 0 else f"{value:g}")
        )
        stack[-1].set_xlabel("epoch")
        return Drawing("curve", figure, f"Training curve over {last} epochs; {kept}")


def seconds(stages: Sequence[tuple[str, Number]]) -> Drawing:
    """Draw the time of every stage."""
    with canvas.style("seconds"):
        figure = canvas.new_figure(20 + 26 * len(stages))
        axes = figure.add_subplot()
        canvas.strip_frame(axes)
        canvas.label_rows(axes, [name for name, _ in stages])
        axes.barh(range(len(stages)), [value for _, value in stages], height=0.6, color=QUIET)
        for row, (_, value) in enumerate(stages):
            canvas.write_after(axes, row, value, duration(value))
        axes.set_xlim(0, 1.18 * max(*(value for _, value in stages), 0.01))
        axes.set_xticks([])
        total = duration(sum(value for _, value in stages))
        return Drawing("seconds", figure, f"Time of {len(stages)} stages, {total} together")


def _weight_bars(axes: Axes, sources: Sequence[Row]) -> None:
    values = [source["weight"] for source in sources]
    axes.barh(range(len(values)), values, height=0.62, color=ACCENT)
    ends = []
    for row, source in enumerate(sources):
        low, high = source.get("interval") or (source["weight"], source["weight"])
        ends += [low, high]
        if high > low:
            axes.plot([low, high], [row, row], color=INK, linewidth=1.2)
        canvas.write_after(axes, row, max(source["weight"], high, 0), signed(source["weight"], 3))
    axes.set_xlim(1.1 * min(*values, *ends, 0), 1.28 * max(*values, *ends, 1e-9))
    axes.axvline(0, color=RULE, linewidth=1)


def _limit_to_what_differs(axes: Axes, found: Sequence[Row]) -> None:
    """Show the majority-class line, or where it lies if it would squeeze the rest together."""
    low = 100 * min(row["low"] for row in found)
    high = 100 * max(row["high"] for row in found)
    majority = 100 * found[0]["majority"]
    text, across = f"majority class {percent(majority / 100)}", "data"
    near = majority > low - max(high - low, 12)
    if near:
        axes.axvline(majority, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        low, high = min(low, majority), max(high, majority)
    else:
        text, across = f"\N{LEFTWARDS ARROW} {text}", "axes fraction"
    pad = max(0.06 * (high - low), 1.5)
    axes.set_xlim(low - pad, high + pad)
    right = near and majority > (low + high) / 2
    axes.annotate(
        text,
        (majority if near else 0, 1),
        xycoords=(across, "axes fraction"),
        xytext=(-4 if right else 4 if near else 0, 3),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        color=MUTED,
    )


def _points(history: Sequence[Row], key: str) -> list[tuple[int, Number]]:
    return [(record["epoch"], record[key]) for record in history if record.get(key) is not None]


def _line(
    axes: Axes,
    points: Sequence[tuple[int, Number]],
    colour: str,
    kept_epoch: int | None,
    label: str | None = None,
    *,
    dashed: bool = False,
) -> None:
    if not points:
        return
    marker = "o" if len(points) <= 30 else ""
    style = (0, (4, 2)) if dashed else "-"
    epochs, values = zip(*points, strict=True)
    axes.plot(
        epochs, values, color=colour, marker=marker, markersize=5, linestyle=style, label=label
    )
    kept = [point for point in points if point[0] == kept_epoch]
    for point in kept:
        axes.scatter(*point, s=75, facecolors=CARD, edgecolors=colour, linewidths=2.2, zorder=4)


def _scale_losses(axes: Axes, values: Sequence[Number]) -> None:
    """Use a logarithmic axis where one early spike would flatten all the rest."""
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        axes.set_ylabel("loss, log scale")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("loss")


def _name_line(axes: Axes, text: str, epoch: int, last: int) -> None:
    early = epoch <= last / 2
    axes.annotate(
        text,
        (epoch, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="left" if early else "right",
        va="bottom",
        color=ACCENT,
    )
