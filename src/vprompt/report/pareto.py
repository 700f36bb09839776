"""Pareto: mean accuracy over cost, and the front of the methods that none beats in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, CARD, INK, MUTED, QUIET, WIDTH, Drawing
from vprompt.report.wording import Number, signed

COSTS = {"seconds": "mean time of a run", "parameters": "trained parameters, head included"}

_KEY = 232  # pixels of the list of names
_LINE = 21  # pixels of a line of it
# Marks of an axis, the roundest first; those of a size stand in every power of ten.
_SECONDS = (
    (0.01, 0.1, 1, 10, 60, 600, 3600, 36000),
    (0.3, 3, 30, 120, 300, 1800, 7200, 18000),
    (2, 5, 20, 45, 90, 180, 900, 2700, 5400, 10800),
    (15, 40, 50, 70, 80, 100, 240, 420, 1200),
)
_SIZES = ((1,), (3,), (2, 5), (1.5, 4, 6, 8), (7, 9))
_APART = 0.17  # how much of the axis lies between two marks, at least


@dataclass(frozen=True)
class Point:
    """A method's cost, above 0, and mean accuracy with its deviation, NaN where there is none."""

    name: str
    cost: float
    accuracy: float
    std: float = math.nan


def front(points: Sequence[Point]) -> list[int]:
    """Return the points that none beats in both cost and accuracy, cheapest first."""
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].accuracy)):
        last = points[kept[-1]] if kept else None
        here = points[index]
        even = last is not None and (here.cost, here.accuracy) == (last.cost, last.accuracy)
        if last is None or even or here.accuracy > last.accuracy:
            kept.append(index)
    return kept


def pareto(points: Sequence[Point], cost: str) -> Drawing:
    """Draw accuracy over one of `COSTS`; points are numbered by accuracy and named at the side."""
    points = sorted(points, key=lambda point: -point.accuracy)
    best = front(points)
    high = max(300, _LINE * len(points) + 8)
    with canvas.style("pareto"):
        figure, place = canvas.fixed_figure(high + 60)
        axes = place(52, 12, WIDTH - _KEY - 66, high)
        canvas.strip_frame(axes, keep=("bottom",))
        axes.yaxis.grid(True)
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.set_ylabel("mean accuracy, %")
        _cost_axis(axes, [point.cost for point in points], cost)
        for index, point in enumerate(points):
            _mark(axes, point, in_front=index in best)
        axes.plot(
            [points[index].cost for index in best],
            [points[index].accuracy for index in best],
            color=ACCENT,
            linewidth=1.3,
            drawstyle="steps-post",
            zorder=2,
        )
        _number(figure, axes, points, best)
        _write_key(place(WIDTH - _KEY + 8, 12, _KEY - 12, high), points, best, high)
        found = ", ".join(points[index].name for index in best)
        text = f"Mean accuracy over {cost} of {len(points)} methods; on the front: {found}"
        return Drawing("pareto", figure, text)


def _mark(axes: Axes, point: Point, *, in_front: bool) -> None:
    colour = ACCENT if in_front else QUIET
    if not math.isnan(point.std):
        ends = [point.accuracy - point.std, point.accuracy + point.std]
        axes.plot([point.cost] * 2, ends, color=colour, linewidth=2, alpha=0.35, zorder=1)
    shape, size = ("o", 8) if in_front else ("s", 6)
    axes.plot([point.cost], [point.accuracy], shape, color=colour, markersize=size, zorder=4)


def _cost_axis(axes: Axes, costs: Sequence[float], cost: str) -> None:
    axes.set_xscale("log")
    low, high = min(costs), max(costs)
    room = max((high / low) ** 0.12, 1.15)
    axes.set_xlim(low / room, high * room)
    marks = _marks(low / room, high * room, cost) or sorted({low, high})
    write = _time if cost == "seconds" else _size
    axes.set_xticks(marks, [write(mark) for mark in marks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{COSTS[cost]}, log scale")


def _marks(low: float, high: float, cost: str) -> list[float]:
    """Return round values within an axis that leave one another room, the roundest ones first."""
    levels = [[float(mark) for mark in level] for level in _SECONDS]
    if cost == "parameters":
        levels = [[m * 10.0**e for e in range(13) for m in level] for level in _SIZES]
    chosen: list[float] = []
    for mark in (mark for level in levels for mark in level if low <= mark <= high):
        gaps = [abs(math.log(mark / other)) / math.log(high / low) for other in chosen]
        if all(gap >= _APART for gap in gaps):
            chosen.append(mark)
    return sorted(chosen)


def _time(value: Number) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if value >= 2 * unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g} s"


def _size(value: Number) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _write_key(axes: Axes, points: Sequence[Point], best: Sequence[int], high: Number) -> None:
    """List number, name and accuracy of every method; those of the front are bold."""
    axes.set(xlim=(0, _KEY - 12), ylim=(high, 0))
    axes.set_axis_off()
    for index, point in enumerate(points):
        style: dict[str, Any] = {
            "va": "center",
            "fontsize": 11.5,
            "color": INK if index in best else MUTED,
            "fontweight": "bold" if index in best else "normal",
        }
        level = _LINE * (index + 0.5)
        axes.text(16, level, str(index + 1), ha="right", **style)
        axes.text(24, level, canvas.shorten(point.name, 20), **style)
        axes.text(_KEY - 14, level, signed(point.accuracy, 1), ha="right", **style)


def _number(figure: Figure, axes: Axes, points: Sequence[Point], best: Sequence[int]) -> None:
    """Write each number beside its point, where it covers neither another nor a point."""
    drawing = FigureCanvasAgg(figure)
    drawing.draw()  # settles the scales, so that positions can be measured
    inside = Bbox(axes.get_window_extent().get_points())
    spots = axes.transData.transform([(point.cost, point.accuracy) for point in points]).tolist()
    taken = [Bbox.from_extents(x - 4.5, y - 4.5, x + 4.5, y + 4.5) for x, y in spots]
    for index, point in enumerate(points):
        text = axes.annotate(
            str(index + 1),
            (point.cost, point.accuracy),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=11,
            color=INK if index in best else MUTED,
            fontweight="bold" if index in best else "normal",
            va="center_baseline",
            ha="center",
            bbox={"facecolor": CARD, "edgecolor": "none", "pad": 0.3},
            zorder=3,
        )
        size = text.get_window_extent(drawing.get_renderer())
        box, shift = _free_place(spots[index], float(size.width) + 2, 11.0, taken, inside)
        text.set_position(shift)
        taken.append(box)


def _free_place(
    spot: Sequence[float], wide: float, high: float, taken: Sequence[Bbox], inside: Bbox
) -> tuple[Bbox, tuple[float, float]]:
    """Return the nearest free box around a point, and its centre relative to the point."""
    tried = [
        (math.copysign(wide / 2 + 5, side) + side * 5 * ring, level * 4.0)
        for ring in range(12)
        for level in sorted(range(-2 - ring, 3 + ring), key=abs)
        for side in (1, -1)
    ]
    tried.sort(key=lambda place: math.hypot(abs(place[0]) - wide / 2, place[1]))
    boxes = [
        Bbox.from_bounds(spot[0] + x - wide / 2, spot[1] + y - high / 2, wide, high)
        for x, y in tried
    ]
    for box, shift in zip(boxes, tried, strict=True):
        within = inside.x0 <= box.x0 and box.x1 <= inside.x1 + 8
        if within and not any(box.overlaps(other) for other in taken):
            return box, shift
    return boxes[0], tried[0]
