"""The picture of `learning.tables`: learning curves, a row of three panels for every task."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.learning.common import TARGETS
from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, INK, MUTED, QUIET, SECOND, Drawing

Run = dict[str, Any]
ARMS = {
    "linear": ("linear probe, tuned", QUIET, "-"),
    "vpt": ("VPT-Deep", ACCENT, "-"),
    "lora": ("LoRA", SECOND, "-"),
    "full": ("full fine-tuning", INK, (0, (4, 2))),
}
PANELS = {
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy, %",
}
_ROW, _ABOVE = 168, 62  # pixels


def draw(runs: Sequence[Run]) -> Drawing:
    """Draw every seed as a thin line with a dot at its kept epoch, and the mean of all as a thick
    one, as far as none has ended."""
    own = [run for run in runs if run["arm"] in ARMS]
    targets = [name for name in TARGETS if any(run["target"] == name for run in own)]
    with canvas.style("learning"):
        figure = canvas.new_figure(_ABOVE + _ROW * len(targets), canvas.WIDE)
        rows = figure.subplots(len(targets), len(PANELS), squeeze=False, sharex=True)
        for target, row in zip(targets, rows, strict=True):
            for column, axes in zip(PANELS, row, strict=True):
                _panel(axes, [run for run in own if run["target"] == target], column)
            row[0].set_title(target, loc="left", fontsize=13, color=INK, fontweight="bold")
        for axes in rows[-1]:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        shown = {run["arm"] for run in own}
        handles = [
            Line2D([], [], color=colour, linestyle=style, linewidth=2.4, label=name)
            for arm, (name, colour, style) in ARMS.items()
            if arm in shown
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, labelcolor=INK)
        text = f"Learning curves of {len(handles)} methods on {len(targets)} tasks"
        return Drawing("learning", figure, text)


def _panel(axes: Axes, runs: Sequence[Run], column: str) -> None:
    canvas.strip_frame(axes, keep=("bottom",))
    axes.yaxis.grid(True)
    axes.tick_params(axis="y", labelcolor=MUTED)
    per_cent = column == "val_accuracy"
    if not per_cent:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    for arm, (_, colour, style) in ARMS.items():
        lines = []
        for run in runs:
            values = run["history"][column]
            if run["arm"] != arm or not any(value is not None for value in values):
                continue
            line = [(x, 100 * y if per_cent else y) for x, y in enumerate(values) if y is not None]
            lines.append(line)
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=0.8, alpha=0.4)
            kept = [point for point in line if point[0] == run["kept_epoch"]]
            for point in kept if per_cent else ():
                axes.plot(*point, "o", color=colour, markersize=4)
        together = [
            (points[0][0], statistics.mean(y for _, y in points))
            for points in zip(*lines, strict=False)
        ]
        if together:
            axes.plot(*zip(*together, strict=True), color=colour, linestyle=style, linewidth=2.2)
    axes.set_title(PANELS[column], loc="right", fontsize=11.5, color=MUTED)
