"""Budgets: accuracy over the size of the prompt, for searched lengths and for uniform ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from vprompt.artifacts import final
from vprompt.core.errors import VPromptError
from vprompt.report import canvas
from vprompt.report.canvas import ACCENT, MUTED, QUIET, SECOND, WIDTH
from vprompt.report.wording import Number, count, percent

Run = Mapping[str, Any]

_SERIES = {  # the mark, the line and the colour of every series, so that colour is never needed
    "searched": ("o", "-", ACCENT),
    "uniform": ("s", "--", SECOND),
    "given": ("D", ":", QUIET),
}


@dataclass(frozen=True)
class Point:
    """A prompt's tokens and accuracy in [0, 1], with its interval if there is one."""

    series: str
    tokens: int
    accuracy: float
    low: float | None = None
    high: float | None = None


def points(runs: Sequence[Run]) -> list[Point]:
    """Read one point per record, on test images where all were tested, else on validation.

    Raises VPromptError where the records are of different tasks, or nothing was measured.
    """
    tasks = {(r["task"]["name"], r["task"]["splits"]["train"]["digest"]) for r in runs}
    if len(tasks) > 1:
        names = ", ".join(sorted({name for name, _ in tasks}))
        raise VPromptError(
            f"Accuracies of different training images do not make one curve; these are of {names}. "
            "Give records of one task and one draw."
        )
    tested = all(run["test"] for run in runs)
    return sorted((_point(run, tested) for run in runs), key=lambda p: (p.series, p.tokens))


def where(runs: Sequence[Run]) -> str:
    """Return what the accuracies are measured on."""
    return "test" if all(run["test"] for run in runs) else "validation"


def drawing(found: Sequence[Point], measured: str) -> canvas.Drawing:
    """Return the figure, ready for a page or a file."""
    parts = [
        f"{series}: " + ", ".join(f"{percent(p.accuracy)} with {count(p.tokens)}" for p in own)
        for series, own in _by_series(found).items()
    ]
    text = f"Accuracy on {measured} images by tokens of the prompt; {'; '.join(parts)}"
    with canvas.style("budgets"):
        return canvas.Drawing("budgets", figure(found, measured), text)


def figure(found: Sequence[Point], measured: str) -> Figure:
    """Draw accuracy over tokens, a line per series with its name at the end."""
    series = _by_series(found)
    with canvas.style("budgets"):
        drawn, add = canvas.fixed_figure(344)
        axes = add(58, 34, WIDTH - 74, 258)
        canvas.strip_frame(axes, keep=("bottom",))
        axes.yaxis.grid(True)
        axes.tick_params(axis="y", labelcolor=MUTED)
        for name, own in series.items():
            _line(axes, name, own)
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.set_xlabel("tokens of the prompt, all blocks together")
        axes.set_ylabel(f"{measured} accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        handles = axes.get_legend_handles_labels()
        axes.legend(
            *handles, loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=len(series), borderpad=0
        )
    return drawn


def _by_series(found: Sequence[Point]) -> dict[str, list[Point]]:
    known = {name: [p for p in found if p.series == name] for name in _SERIES}
    return {
        name: sorted(own, key=lambda p: (p.tokens, p.accuracy))
        for name, own in known.items()
        if own
    }


def _line(axes: Axes, name: str, own: Sequence[Point]) -> None:
    mark, line, colour = _SERIES[name]
    across: list[Number] = [point.tokens for point in own]
    up = [100 * point.accuracy for point in own]
    axes.plot(across, up, line, color=colour, marker=mark, markersize=7, linewidth=1.6, label=name)
    assert isinstance(axes.figure, Figure)
    # Intervals of two series at one size stand side by side.
    aside = 3 * ([*_SERIES].index(name) - 1) / 72
    shifted = axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
    for point in own:
        if point.low is not None and point.high is not None:
            ends = [100 * point.low, 100 * point.high]
            style: dict[str, Any] = {"color": colour, "linewidth": 2, "alpha": 0.35, "zorder": 1}
            axes.plot([point.tokens] * 2, ends, transform=shifted, **style)
            axes.update_datalim([(point.tokens, end) for end in ends])
    axes.autoscale_view()


def _point(run: Run, tested: bool) -> Point:
    tuning = run["tuning"]
    tokens = tuning["parameters"].get("prompt", 0) // run["backbone"]["token_dim"]
    if tested:
        measured = run["test"][final.LEARNED]
        return Point(_series(run), tokens, measured["acc1"], measured["low"], measured["high"])
    kept = next(r for r in tuning["history"] if r["epoch"] == tuning["kept_epoch"])
    if kept["val_accuracy"] is None:
        raise VPromptError(
            f"A run of {run['method']} was measured on no images at all. Learn it without "
            "`--no-test`, or with validation images."
        )
    return Point(_series(run), tokens, kept["val_accuracy"])


def _series(run: Run) -> str:
    if run["command"] == "search":
        return "searched"
    lengths = run.get("settings", {}).get("num_virtual_tokens") or 0  # None: as a preset says
    alike = isinstance(lengths, int) or max(lengths) - min(lengths) <= 1
    return "uniform" if alike else "given"
