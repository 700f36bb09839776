"""Maps: images as points in the plane, a panel per prompt, a colour and a shape per class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from vprompt.report import canvas
from vprompt.report.canvas import INK, MUTED, QUIET, RULE, WIDTH, Drawing
from vprompt.report.wording import Number

# Okabe and Ito's colours without the yellow, three of Tol's muted ones, the page's ink for black.
# Every class has a shape of its own as well, so that colour is never needed.
_MARKS = (
    ("#0072b2", "o"),
    ("#e69f00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#56b4e9", "v"),
    ("#d55e00", "P"),
    (INK, "X"),
    ("#999933", "*"),
    ("#882255", "<"),
    ("#44aa99", "p"),
)
MOST_CLASSES = len(_MARKS)
_GAP = 20


@dataclass(frozen=True)
class Panel:
    """The points `[images][2]` under one prompt, its name, and a short remark."""

    name: str
    note: str
    points: Sequence[Sequence[float]]


def embedding(
    panels: Sequence[Panel], labels: Sequence[int], classes: Sequence[str], *, method: str
) -> Drawing:
    """Draw the same images under several prompts, two panels to a row.

    Of many classes the ten with the most images have a colour; the others are small and grey.
    """
    chosen = _largest(labels)
    others = len(set(labels)) > len(chosen)
    across = min(len(panels), 2)
    side = (WIDTH - 4 - _GAP * (across - 1)) / across if across > 1 else 0.6 * WIDTH
    down = math.ceil(len(panels) / across)
    names = [canvas.shorten(classes[label], 20) for label in chosen]
    names += ["other classes"] * others
    with canvas.style("embedding"):
        widest = 34 + max(canvas.width_of(name, 12) for name in names)
        columns = max(1, min(len(names), int((WIDTH - 4) // widest)))
        legend = 22 * math.ceil(len(names) / columns)
        figure, place = canvas.fixed_figure(down * (side + 34) + legend + 12)
        for index, panel in enumerate(panels):
            row, column = divmod(index, across)
            axes = place(2 + column * (side + _GAP), 24 + row * (side + 34), side, side)
            _scatter(axes, panel, labels, chosen)
        axes = place(2, down * (side + 34) + 8, WIDTH - 4, legend)
        _legend(axes, names, columns, (WIDTH - 4) / columns, others=others)
        text = f"{method} of {len(labels)} training images under {len(panels)} prompts: "
        return Drawing("embedding", figure, text + ", ".join(panel.name for panel in panels))


def _largest(labels: Sequence[int]) -> list[int]:
    """Return the classes with the most images, at most as many as there are marks, in order."""
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    by_size = sorted(counts, key=lambda label: (-counts[label], label))
    return sorted(by_size[:MOST_CLASSES])


def _scatter(axes: Axes, panel: Panel, labels: Sequence[int], chosen: Sequence[int]) -> None:
    canvas.strip_frame(axes)
    for spine in axes.spines.values():
        spine.set(visible=True, color=RULE)
    axes.set(xticks=[], yticks=[])
    axes.set_title(canvas.shorten(panel.name, 22), fontsize=12.5, color=INK, loc="left", pad=5)
    axes.set_title(panel.note, fontsize=11, color=MUTED, loc="right", pad=5)
    for label in sorted(set(labels) - set(chosen)):
        _points(axes, panel, labels, label, QUIET, ".", 2.5)
    size = 6 if len(labels) <= 400 else 4.2
    for label, (colour, shape) in zip(chosen, _MARKS, strict=False):
        _points(axes, panel, labels, label, colour, shape, size)
    axes.margins(0.05)


def _points(
    axes: Axes,
    panel: Panel,
    labels: Sequence[int],
    label: int,
    colour: str,
    shape: str,
    size: Number,
) -> None:
    own = [point for point, other in zip(panel.points, labels, strict=True) if other == label]
    x, y = zip(*own, strict=True)
    _mark(axes, x, y, colour, shape, size)


def _legend(axes: Axes, names: Sequence[str], columns: int, wide: float, *, others: bool) -> None:
    high = 22 * math.ceil(len(names) / columns)
    axes.set(xlim=(0, columns * wide), ylim=(high, 0))
    axes.set_axis_off()
    marks = [*_MARKS[: len(names) - others], *([(QUIET, ".")] if others else [])]
    for index, (name, (colour, shape)) in enumerate(zip(names, marks, strict=True)):
        row, column = divmod(index, columns)
        x, y = column * wide, 22 * row + 11
        _mark(axes, [x + 8], [y], colour, shape, 7.5)
        axes.text(x + 20, y, name, fontsize=12, color=INK, va="center")


def _mark(
    axes: Axes, x: Sequence[Number], y: Sequence[Number], colour: str, shape: str, size: Number
) -> None:
    size *= 1.35 if shape == "*" else 1  # the arms of a star cover little
    axes.plot(x, y, shape, color=colour, markersize=size, alpha=0.85, markeredgewidth=0)
