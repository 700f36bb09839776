"""Canvas: empty figures in the report's style, and what becomes of them: part of a page, or a file.

In a page, colours and fonts belong to the page: every named colour leaves here as a CSS variable,
so a figure follows the reader's light or dark theme. A file has plain colours on white paper.
"""

import html
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath

from vprompt.core.errors import VPromptError
from vprompt.core.files import atomic_file
from vprompt.report.wording import Number, signed

WIDTH = 560  # user units, which are CSS pixels at full size
WIDE = 900  # for what needs the whole page
PAPER = "#ffffff"
SHARPNESS = 4  # pixels of a PNG per unit: 320 to the inch at 7 inches
SUFFIXES = (".svg", ".png")

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

# Of heat maps: one hue whose lightness falls all the way, so it survives grey print and any colour
# vision.
LIGHTNESS = LinearSegmentedColormap.from_list(
    "weights", ["#f3f7f7", "#93c6c0", "#0b6e69", "#03302e"]
)

_NOTHING = {key: None for key in ("Date", "Creator", "Format", "Type")}  # the same in every run
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "font.sans-serif": ["DejaVu Sans"],  # what texts are measured with; the list is in every text
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


@dataclass(frozen=True, eq=False)
class Drawing:
    """A finished figure: `name` makes its identifiers, `description` is for who cannot see it."""

    name: str
    figure: Figure
    description: str

    def svg(self, place: str = "") -> str:
        """Return an SVG element that scales with its container, in the colours of the page.

        Two figures of one name on a page need a `place` each, which keeps their identifiers apart.
        """
        with style(f"{self.name}{place}"):
            return to_svg(self.figure, self.description)

    def __html__(self) -> str:
        """Stand in a template as the SVG element."""
        return self.svg()

    def save(self, path: Path | str) -> None:
        """Write a file of its own, whole or not at all: `.svg` with text as text, or `.png`."""
        path = Path(path)
        check_suffix(path)
        data, kind = io.BytesIO(), path.suffix[1:]
        facts = _NOTHING | {"Title": self.description} if kind == "svg" else {"Software": None}
        with style(self.name), _glyphs_of_others():
            self.figure.savefig(
                data, format=kind, facecolor=PAPER, dpi=72 * SHARPNESS, metadata=facts
            )
        made = data.getvalue()
        with atomic_file(path) as draft:
            draft.write_bytes(lean(made.decode()).encode() if kind == "svg" else made)


def check_suffix(path: Path) -> None:
    """Raise VPromptError unless a figure can be written under this name."""
    if path.suffix not in SUFFIXES:
        raise VPromptError(
            f"A figure is written as {' or '.join(SUFFIXES)}, but got {path.name!r}."
        )


def new_figure(height: Number, width: Number = WIDTH) -> Figure:
    """Return a figure whose units are CSS pixels."""
    layout = ConstrainedLayoutEngine(w_pad=3 / 72, h_pad=4 / 72, wspace=0.05)
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def fixed_figure(
    height: Number, width: Number = WIDTH
) -> tuple[Figure, Callable[[Number, Number, Number, Number], Axes]]:
    """Return a figure, and a function that adds axes at `(left, top, width, height)` in pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)

    def place(left: Number, top: Number, wide: Number, high: Number) -> Axes:
        box = (left / width, 1 - (top + high) / height, wide / width, high / height)
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


def write_beside(axes: Axes, row: Number, text: str, *, bold: bool) -> None:
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


def width_of(text: str, size: Number) -> float:
    """Return how wide a text is in matplotlib's font, which is wider than the fonts of most pages.

    Only within `style`, where a dollar sign is a dollar sign.
    """
    with _glyphs_of_others():
        # Small letters are set on whole pixels, which takes a little more than their outlines.
        return 1.08 * float(TextPath((0, 0), text, size=float(size)).get_extents().width)


def shorten(name: str, limit: int = 26) -> str:
    """Return a name that fits beside a plot: one line, no control characters."""
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def colour_scale(axes: Axes, mesh: QuadMesh, ticks: Mapping[float, str]) -> None:
    """Draw the colours of a heat map as a bar; the first and last tick stay within it."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    bar = figure.colorbar(mesh, cax=axes, orientation="horizontal")
    assert bar.solids is not None
    bar.solids.set_edgecolor("face")  # otherwise hair lines show between the steps
    bar.outline.set_visible(False)
    bar.set_ticks([*ticks], labels=[*ticks.values()])
    axes.tick_params(length=0, pad=5, labelcolor=MUTED)
    first, *_, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def write_cell(
    axes: Axes, mesh: QuadMesh, row: int, column: int, value: Number | None, size: Number
) -> None:
    """Write a number into its cell of a heat map, to two digits; None is a dash."""
    middle = (column + 0.5, row + 0.5)
    if value is None:
        axes.text(*middle, "\N{EN DASH}", color=MUTED, fontsize=size, ha="center", va="center")
        return
    red, green, blue, _ = mesh.to_rgba(np.array(value))
    # Not from the palette of the page: the cells have the same colours in both themes.
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
    axes.text(
        *(*middle, signed(value, 2).replace("0.", ".", 1)),
        color="#222222" if light else "#ffffff",
        fontsize=size,
        ha="center",
        va="center_baseline",
    )


def to_svg(figure: Figure, description: str) -> str:
    """Return the figure as an SVG element that scales with its container."""
    target = io.StringIO()
    with _glyphs_of_others():
        figure.savefig(target, format="svg", metadata=_NOTHING)
    text = lean(target.getvalue())
    text = text[text.index("<svg") :]
    for colour, name in _VARIABLES.items():
        text = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var(--{name}, {colour})", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    opening = f'<svg role="img" aria-label="{html.escape(description)}" {box[0]}>'
    return opening + text[text.index(">") + 1 :].strip()


def lean(text: str) -> str:
    """Return an SVG that looks the same in fewer bytes: a hundredth of a pixel is enough."""
    # Group names such as figure_1 repeat in every figure, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d)0(?=[^\d.])", r"\1", tag[0]), text)
    text = re.sub(r" ?\n([A-Zz\"])", r" \1", text)  # the points of a path
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r">\s+<", ">\n<", text)
    text = text.replace("<g/>\n", "")
    text = re.sub(r"<g>\n(<[^>]*/>|<text[^>]*>[^<]*</text>)\n</g>", r"\1", text)
    if f" {_FONT};" in text:  # of every text, so it is said once
        text = text.replace(f" {_FONT};", "")
        text = text.replace("</defs>\n<g>", f'</defs>\n<g style="{_FONT}">', 1)
    text = _RECTANGLE.sub(r"M\1 \2H\3V\4H\1Z", text)
    text = _MARK.sub(r'<use style="\2"\1/>', _CELLS.sub(_as_one, text))
    return _ALIKE.sub(_in_groups, text)


_FONT = "font-family: 'DejaVu Sans', sans-serif"
_NUMBER = r"(-?[\d.]+)"
_RECTANGLE = re.compile(
    rf"M {_NUMBER} {_NUMBER} L {_NUMBER} \2 L \3 {_NUMBER} L \1 \4 L \1 \2 (?:z )?(?=\")"
)
_CELL = re.compile(r'<path d="(M[^"LMz]*Z)"( clip-path="[^"]*" style="[^"]*"/>\n)')
_CELLS = re.compile(rf"(?:{_CELL.pattern}){{2,}}")
_MARK = re.compile(r'<use( xlink:href="[^"]*" x="[^"]*" y="[^"]*") style="([^"]*)"/>')
# `opacity` would be that of a group as a whole; `fill-opacity` is that of each.
_STYLED = re.compile(
    r'<(text|use) style="((?!(?:[^"]*; )?opacity)[^"]*)"([^>]*>(?:[^<]*</text>)?\n)'
)
_ALIKE = re.compile(rf"(?:{_STYLED.pattern}){{2,}}")


def _as_one(cells: re.Match[str]) -> str:
    """Return neighbouring rectangles of one look as one path.

    Those of a heat map share the colour of their edges, so the order in which they are drawn does
    not show, and all of one look are one path.
    """
    found = _CELL.findall(cells[0])
    if len({look.partition("stroke")[2] for _, look in found}) == 1:
        found.sort(key=lambda cell: cell[1])
    alike = itertools.groupby(found, key=lambda cell: cell[1])
    drawn = [(look, [points for points, _ in group]) for look, group in alike]
    return "".join(f'<path d="{"".join(points)}"{look}' for look, points in drawn)


def _in_groups(drawn: re.Match[str]) -> str:
    """Return neighbouring texts and marks of one look in a group that says it once."""
    alike = itertools.groupby(_STYLED.findall(drawn[0]), key=lambda each: each[1])
    groups = [(look, [f"<{kind}{rest}" for kind, _, rest in group]) for look, group in alike]
    return "".join(f'<g style="{look}">\n{"".join(lines)}</g>\n' for look, lines in groups)


@contextmanager
def _glyphs_of_others() -> Iterator[None]:
    """Allow text that is measured with matplotlib's font, but drawn with the reader's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield
