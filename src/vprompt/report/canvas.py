"""Canvas: empty figures in the report's style, and their text as SVG that lives inside a page.

Colours and fonts belong to the page: every named colour leaves here as a CSS variable, so a figure
follows the reader's light or dark theme, and stays legible outside the page through its fallback.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vprompt.errors import VPromptError
from vprompt.files import atomic_file
from vprompt.report.wording import Number

WIDTH = 560  # user units, which are CSS pixels at full size

# The same names as the variables in report.css.
INK, MUTED, RULE, CARD = "#1c2530", "#5f6b7a", "#dfe3e8", "#fefefe"
ACCENT, SECOND, QUIET = "#0b6e69", "#b4571b", "#8793a1"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    CARD: "card",
    ACCENT: "accent",
    SECOND: "second",
    QUIET: "quiet",
}

_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "text.parse_math": False,  # a class may be called $5
    "font.size": 12.5,
    "axes.labelsize": 12.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw in the report's style, whatever the reader's own matplotlib settings are."""
    # The salt makes identifiers the same in every run, and different between figures of one page.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": f"vprompt {name}"}]):
        yield


def new_figure(height: Number) -> Figure:
    """Return a figure of the full width whose units are CSS pixels."""
    layout = ConstrainedLayoutEngine(w_pad=3 / 72, h_pad=4 / 72, wspace=0.05)
    return Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout=layout)


def fixed_figure(height: Number) -> tuple[Figure, Callable[[Number, Number, Number, Number], Axes]]:
    """Return a figure, and a function that adds axes at `(left, top, width, height)` in pixels."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)

    def place(left: Number, top: Number, wide: Number, high: Number) -> Axes:
        box = (left / WIDTH, 1 - (top + high) / height, wide / WIDTH, high / height)
        return figure.add_axes(box)

    return figure, place


def strip_frame(axes: Axes, *, keep: tuple[str, ...] = ()) -> None:
    """Remove spines and tick marks that carry no information."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
    axes.tick_params(length=0)


def label_rows(axes: Axes, names: list[str]) -> None:
    """Name the rows 0, 1, ... from top to bottom."""
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def write_after(axes: Axes, row: Number, value: Number, text: str) -> None:
    """Write a text at the end of a horizontal bar."""
    axes.annotate(
        text, (value, row), xytext=(5, 0), textcoords="offset points", va="center", color=MUTED
    )


def write_beside(axes: Axes, row: int, text: str, *, bold: bool) -> None:
    """Write a number in a column to the right of the axes."""
    axes.annotate(
        text,
        (1, row),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=INK if bold else MUTED,
        fontweight="bold" if bold else "normal",
    )


def widen(axes: Axes, span: Number) -> None:
    """Keep differences in the last digits from looking large."""
    low, high = axes.get_xlim()
    extra = max(span - (high - low), 0) / 2 + 0.04 * (high - low)
    axes.set_xlim(low - extra, high + extra)


def shorten(name: str, limit: int = 26) -> str:
    """Return a name that fits beside a plot: one line, no control characters."""
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a file of its own, SVG or PNG by its ending, on the report's paper."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("svg", "png"):
        raise VPromptError(f"A picture is a .svg or .png file, but got {str(path)!r}.")
    plain = {"Date": None} if kind == "svg" else {"Software": None}
    with atomic_file(path) as draft, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(draft, format=kind, metadata=plain, facecolor=CARD, dpi=144)


def to_svg(figure: Figure, description: str) -> str:
    """Return the figure as an SVG element that scales with its container."""
    target = io.StringIO()
    nothing = {key: None for key in ("Date", "Creator", "Format", "Type")}
    with warnings.catch_warnings():
        # Text is measured with matplotlib's font but drawn with the reader's, which has the glyph.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(target, format="svg", metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    # Group names such as figure_1 repeat in every figure, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, name in _VARIABLES.items():
        text = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var(--{name}, {colour})", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    opening = f'<svg role="img" aria-label="{html.escape(description)}" {box[0]}>'
    return opening + text[text.index(">") + 1 :].strip()
