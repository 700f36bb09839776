"""Comparisons: gains over a baseline, and accuracy by the value of a setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, CARD, INK, MUTED, QUIET, SECOND, Drawing
from vprompt.report.wording import Number, signed

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Gain:
    """A method's mean gain over a baseline in points, None for the baseline itself.

    `low` and `high` are its interval, NaN where there is none; `tasks` are the gains on each task.
    """

    name: str
    mean: float | None
    low: float = math.nan
    high: float = math.nan
    tasks: Sequence[float] = ()
    accuracy: float | None = None
    group: str | None = None


@dataclass(frozen=True)
class Curve:
    """The accuracy on one target by the value of a setting: `value: (mean, deviation)`."""

    name: str
    points: Mapping[float, tuple[float, float]] = field(default_factory=dict)


def gains(rows: Sequence[Gain], baseline: str) -> Drawing:
    """Draw each method's gain as a bar from 0, its interval, and the gains on single tasks."""
    with canvas.style("gains"):
        heights, place, before = [], 0.0, rows[0].group
        for row in rows:
            place += 0.55 if row.group != before else 0  # a gap between groups
            before = row.group
            heights.append(place)
            place += 1
        figure = canvas.new_figure(74 + 27 * place)
        axes = figure.add_subplot()
        canvas.strip_frame(axes, keep=("bottom",))
        axes.set_yticks(heights, [canvas.shorten(row.name, 32) for row in rows])
        axes.set_ylim(heights[-1] + 0.6, -0.6)
        axes.xaxis.grid(True)
        for height, row in zip(heights, rows, strict=True):
            _gain_bar(axes, height, row)
            accuracy = "" if row.accuracy is None else signed(row.accuracy, 1)
            canvas.write_beside(axes, height, accuracy, bold=False)
        axes.axvline(0, color=MUTED, linewidth=1.2, zorder=3)
        _limit_gains(axes, rows)
        axes.annotate(
            "mean, %" if any(row.accuracy is not None for row in rows) else "",
            (1, 1),
            xycoords="axes fraction",
            xytext=(8, 3),
            textcoords="offset points",
            color=MUTED,
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _with_sign(value)))
        axes.set_xlabel(f"gain over {canvas.shorten(baseline, 24)}, points")
        known = [row for row in rows if row.mean is not None]
        text = f"Mean gain of {len(known)} methods over {baseline}"
        if known:
            best = max(known, key=lambda row: row.mean or 0)
            text += f"; the largest is {best.name} with {signed(best.mean, 1)} points"
        return Drawing("gains", figure, text)


def _gain_bar(axes: Axes, height: Number, row: Gain) -> None:
    if row.mean is None:
        axes.annotate(
            "baseline",
            (0, height),
            xytext=(-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=MUTED,
        )
        return
    colour = ACCENT if row.mean >= 0 else SECOND
    axes.barh([height], [row.mean], height=0.62, color=colour, zorder=2)
    if not math.isnan(row.low):
        axes.plot([row.low, row.high], [height, height], color=INK, linewidth=1.4, zorder=4)
    axes.plot(
        row.tasks,
        [height] * len(row.tasks),
        "o",
        markersize=4.5,
        markerfacecolor=CARD,
        markeredgecolor=MUTED,
        zorder=5,
    )


def _limit_gains(axes: Axes, rows: Sequence[Gain]) -> None:
    values = [0.0]
    for row in rows:
        values += [v for v in (row.mean, row.low, row.high) if v is not None and not math.isnan(v)]
        values += row.tasks
    low, high = min(values), max(values)
    pad = max(0.05 * (high - low), 0.2)
    # The word beside the baseline needs room on its left.
    axes.set_xlim(min(low - pad, -0.3 * (high - low + pad)), high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))


def sweep(curves: Sequence[Curve], setting: str, *, limit: str) -> Drawing:
    """Draw the accuracy by the value of a setting, a panel per target, all of one scale per point.

    The values 0 and infinity, which a logarithmic axis lacks, stand apart at its ends; `limit` says
    what infinity is.
    """
    assert curves
    places = _places({value for curve in curves for value in curve.points})
    across = min(len(curves), 2)
    down = math.ceil(len(curves) / across)
    span = 1.15 * max(_high(curve) - _low(curve) for curve in curves)
    with canvas.style("sweep"):
        figure = canvas.new_figure(46 + 190 * down)
        panels = figure.subplots(down, across, sharex=True, squeeze=False)
        for index, axes in enumerate(panels.flat):
            if index >= len(curves):
                axes.set_visible(False)
                continue
            curve = curves[index]
            _curve(axes, curve, places)
            half = max(span / 2, 1.0)
            middle = min((_high(curve) + _low(curve)) / 2, 100.5 - half)
            axes.set_ylim(middle - half, middle + half)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.set_title(canvas.shorten(curve.name), fontsize=12.5, color=INK, loc="left", pad=6)
            axes.set_xticks([*places.values()], [_tick(value) for value in places])
            axes.xaxis.set_minor_locator(NullLocator())
            if index + across >= len(curves):
                axes.tick_params(axis="x", labelbottom=True)
                axes.set_xlabel(
                    setting + (f" (\N{INFINITY}: {limit})" if math.inf in places else "")
                )
            if index % across == 0:
                axes.set_ylabel("accuracy, %")
        text = f"Accuracy by {setting} on {len(curves)} targets: "
        return Drawing("sweep", figure, text + ", ".join(curve.name for curve in curves))


def _places(values: set[float]) -> dict[float, float]:
    """Return where on the axis each value stands: its logarithm, and the ends apart from it."""
    inner = sorted(value for value in values if 0 < value < math.inf)
    places = {value: math.log10(value) for value in inner}
    first, last = (places[inner[0]], places[inner[-1]]) if inner else (0.0, 0.0)
    if 0 in values:
        places = {0.0: first - 0.6, **places}
    if math.inf in values:
        places[math.inf] = last + 0.6
    return places


def _curve(axes: Axes, curve: Curve, places: Mapping[float, float]) -> None:
    canvas.strip_frame(axes, keep=("bottom",))
    axes.yaxis.grid(True)
    axes.tick_params(axis="y", labelcolor=MUTED)
    found = [(places[v], v, *curve.points[v]) for v in places if v in curve.points]
    x, values, means, stds = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    inner = (values > 0) & np.isfinite(values)
    band = np.nan_to_num(stds)
    axes.fill_between(
        x[inner],
        (means - band)[inner],
        (means + band)[inner],
        color=ACCENT,
        alpha=0.18,
        linewidth=0,
    )
    axes.plot(x, means, color=QUIET, linewidth=1.1, linestyle=(0, (1, 2)), zorder=2)
    axes.plot(x[inner], means[inner], "o-", color=ACCENT, markersize=5.5, zorder=3)
    for place, mean, std in zip(x[~inner], means[~inner], band[~inner], strict=True):
        axes.plot([place, place], [mean - std, mean + std], color=SECOND, alpha=0.4, linewidth=3)
        axes.plot([place], [mean], "D", color=SECOND, markersize=6, zorder=3)
    pad = 0.08 * (max(places.values()) - min(places.values())) or 0.5
    axes.set_xlim(min(places.values()) - pad, max(places.values()) + pad)


def _low(curve: Curve) -> float:
    return min(mean - np.nan_to_num(std) for mean, std in curve.points.values())


def _high(curve: Curve) -> float:
    return max(mean + np.nan_to_num(std) for mean, std in curve.points.values())


def _tick(value: float) -> str:
    return "\N{INFINITY}" if value == math.inf else f"{value:g}"


def _with_sign(value: Number) -> str:
    return "0" if not value else f"{value:+g}".replace("-", _MINUS)
