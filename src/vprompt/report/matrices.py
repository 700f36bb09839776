"""Matrices: the weights of several methods as heat maps of one scale, side by side."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap

from vprompt.report import canvas
from vprompt.report.canvas import CARD, INK, MUTED, WIDE, WIDTH, Drawing
from vprompt.report.wording import Number, signed

Matrix = Sequence[Sequence[Number | None]]

MOST_ROWS = 40
_TURN = 50  # degrees by which the names of columns are turned
_ROOM = 25  # a cell of so many pixels holds its number


def weight_maps(
    maps: Sequence[tuple[str, Matrix]], targets: Sequence[str], sources: Sequence[str]
) -> Drawing:
    """Draw one heat map per method, targets downwards and sources across, all of one scale.

    A matrix is `[targets][sources]`; None is a weight that there is not.
    """
    rows = [canvas.shorten(name, 20) for name in targets[:MOST_ROWS]]
    columns = [canvas.shorten(name, 20) for name in sources[:MOST_ROWS]]
    size = 11 if len(columns) <= 20 else 8.5
    across = 1 if len(maps) % 2 else 2  # below every column hang the names of the sources
    width = WIDTH if across == 1 else WIDE
    lowest, highest = _limits([matrix for _, matrix in maps])
    with canvas.style("weight maps"):
        longest = max(canvas.width_of(name, size) for name in columns)
        below = 16 + longest * math.sin(math.radians(_TURN))
        # The names under the columns lean out to the left of the first one.
        lean = 4 + longest * math.cos(math.radians(_TURN))
        left = max(lean, 12 + max(canvas.width_of(name, size) for name in rows))
        cell = min((width - left - 12 - 26 * (across - 1)) / across / len(columns), 44)
        wide, high = cell * len(columns), min(cell, 34) * len(rows)
        down = math.ceil(len(maps) / across)
        figure, place = canvas.fixed_figure(48 + down * (high + 34) + below, width)
        for index, (name, matrix) in enumerate(maps):
            row, column = divmod(index, across)
            axes = place(left + column * (wide + 26), 72 + row * (high + 34), wide, high)
            shown = [[*values[:MOST_ROWS]] for values in matrix[:MOST_ROWS]]
            mesh = _heat_map(axes, shown, _colours(lowest), lowest, highest)
            axes.set_title(canvas.shorten(name, 44), fontsize=12.5, color=INK, loc="left", pad=6)
            _write(axes, mesh, shown, numbers=cell >= _ROOM)
            lowermost = index + across >= len(maps)
            _name_axes(axes, rows if column == 0 else [], columns if lowermost else [], size)
        ticks = {value: signed(value, 1 if highest >= 0.2 else 2) for value in (lowest, highest)}
        names = {lowest: f"weight {ticks[lowest]}", highest: ticks[highest]}
        canvas.colour_scale(place(left, 6, 180, 12), mesh, names)
        text = f"Weights of {len(columns)} sources on {len(rows)} targets by "
        return Drawing("weight maps", figure, text + ", ".join(name for name, _ in maps))


def _limits(matrices: Sequence[Matrix]) -> tuple[float, float]:
    """Return the ends of the scale: from 0, or around 0 where a weight is negative."""
    values = [v for m in matrices for v in itertools.chain.from_iterable(m) if v is not None]
    most = max((abs(value) for value in values), default=1.0)
    step = 0.1 if most > 0.2 else 0.02
    most = max(math.ceil(round(most / step, 6)) * step, step)
    return (-most if any(round(value, 3) < 0 for value in values) else 0.0), most


def _colours(lowest: Number) -> Colormap:
    # With so few steps the scale is made of shapes; a finer one would be a picture of pixels.
    return (colormaps["RdBu"] if lowest < 0 else canvas.LIGHTNESS).resampled(41)


def _heat_map(
    axes: Axes, matrix: Matrix, colours: Colormap, lowest: Number, highest: Number
) -> QuadMesh:
    numbers = np.array([[np.nan if v is None else v for v in row] for row in matrix], dtype=float)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(numbers),
        cmap=colours,
        vmin=lowest,
        vmax=highest,
        edgecolors=CARD,
        linewidth=1,
    )
    canvas.strip_frame(axes)
    axes.invert_yaxis()
    return mesh


def _write(axes: Axes, mesh: QuadMesh, matrix: Matrix, *, numbers: bool) -> None:
    """Write the weights but those of 0; a row without any run says so once."""
    for row, values in enumerate(matrix):
        empty = all(value is None for value in values)
        if empty:
            middle = (len(values) / 2, row + 0.5)
            axes.text(*middle, "no run", color=MUTED, ha="center", va="center")
        for column, value in enumerate(values):
            if not empty and (value is None or (numbers and round(value, 2))):
                canvas.write_cell(axes, mesh, row, column, value, 10.5)


def _name_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str], size: Number) -> None:
    axes.set_yticks([index + 0.5 for index in range(len(rows))], rows, fontsize=size)
    middles = [index + 0.5 for index in range(len(columns))]
    axes.set_xticks(middles, columns, fontsize=size, rotation=_TURN, ha="right")
    axes.tick_params(axis="x", labelcolor=INK)
    for label in axes.get_xticklabels():
        label.set(rotation_mode="anchor", va="top")
