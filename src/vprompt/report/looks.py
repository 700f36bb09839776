"""Looks: attention maps over an image, drawn as sheets of small pictures; arrays in, HTML out."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vprompt.core.errors import VPromptError
from vprompt.core.files import write_text
from vprompt.report.html import fill

Map = NDArray[np.float32]
_TILE, _GAP, _SIDE, _TOP = 112, 4, 96, 20
_COLOURS = "magma"


def sheet(
    image: NDArray[np.uint8], rows: Mapping[str, Sequence[Map | None]], heads: Sequence[str]
) -> Image.Image:
    """Return maps over an image, a row of tiles for each name; None leaves a place empty.

    Every tile has its own scale: its brightest patch is the one looked at most.
    """
    tall, wide = image.shape[:2]
    size = (_TILE, max(1, round(_TILE * tall / wide)))
    columns = max(len(maps) for maps in rows.values())
    step = (size[0] + _GAP, size[1] + _GAP)
    canvas = Image.new("RGB", (_SIDE + columns * step[0], _TOP + len(rows) * step[1]), "white")
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        draw.text((_SIDE + column * step[0] + 2, 3), head, fill="black")
    grey = np.asarray(Image.fromarray(image).resize(size).convert("L").convert("RGB"))
    for place, (name, maps) in enumerate(rows.items()):
        top = _TOP + place * step[1]
        draw.multiline_text((2, top + 2), name.replace(", ", "\n"), fill="black")
        for column, each in enumerate(maps):
            if each is not None:
                canvas.paste(_tile(grey, each, size), (_SIDE + column * step[0], top))
    return canvas


def _tile(grey: NDArray[np.uint8], values: Map, size: tuple[int, int]) -> Image.Image:
    from matplotlib import colormaps

    spread = float(values.max() - values.min())
    scaled = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    large = Image.fromarray((255 * scaled).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    colours: Any = colormaps[_COLOURS](np.asarray(large))
    coloured = 255 * colours[..., :3].astype(np.float32)
    return Image.fromarray((0.35 * grey + 0.65 * coloured).astype(np.uint8))


def write_page(
    title: str, facts: Sequence[str], sheets: Mapping[str, Image.Image], path: Path
) -> None:
    """Write one HTML file with all sheets in it."""
    write_text(path, fill("looks.html", {"title": title, "section": section(facts, sheets)}))


def section(facts: Sequence[str], sheets: Mapping[str, Image.Image]) -> object:
    """Return a section of a report, its pictures inside it."""
    from markupsafe import Markup

    shown = {name: _data(image) for name, image in sheets.items()}
    return Markup(fill("looks_section.html", {"facts": facts, "sheets": shown}))


def add_to(report: Path, facts: Sequence[str], sheets: Mapping[str, Image.Image]) -> None:
    """Put a section at the end of a report that is there."""
    try:
        text = report.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VPromptError(f"The report {report} cannot be read: {error}.") from None
    before, end, after = text.rpartition("</main>")
    if not end:
        raise VPromptError(
            f"{report} is not a report that vprompt wrote, for it has no end to write before."
        )
    write_text(report, f"{before}{section(facts, sheets)}\n{end}{after}")


def _data(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
