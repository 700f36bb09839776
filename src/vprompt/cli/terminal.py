"""Terminal: progress bars, tables and the summary of a run; nothing else prints."""

import contextlib
import json
import math
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vprompt.cli.logged import Lines
from vprompt.core.errors import CacheWarning, Renamed, VPromptError
from vprompt.core.plain import printable
from vprompt.core.progress import SILENT, Progress

_STOPPED = 130  # the exit code of a program that Ctrl-C ended
_ENDINGS = {128 + each: each for each in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if each}
_FOLDED = 100  # rows up to which a table is folded to the width of its window


class _Bars:
    """Shows a bar per step on standard error, so that standard output stays a result."""

    def __init__(self, display: Any) -> None:
        self.display = display

    @contextmanager
    def step(self, description: str, total: int) -> Iterator["_Bar"]:
        """Open a bar."""
        bar = self.display.add_task(printable(description), total=total, note="")
        yield _Bar(self.display, bar)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        # A sentence is not folded: it may name a file, and other programs read it by lines.
        self.display.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


class _Bar:
    def __init__(self, display: Any, bar: Any) -> None:
        self.display, self.bar = display, bar

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Move the bar."""
        fields = {"note": printable(note)} if note else {}
        self.display.update(self.bar, advance=amount, **fields)


def write_any_text() -> None:
    """Let every text be printed: what a terminal's encoding lacks is written as its escape."""
    for stream in (sys.stdout, sys.stderr):
        change = getattr(stream, "reconfigure", None)
        if change is not None:
            change(errors="backslashreplace")


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Yield bars with counts, time left and a note; lines in a log file; silent when asked."""
    if quiet:
        yield SILENT
        return
    if not sys.stderr.isatty():
        yield Lines(printable)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = [
        TextColumn("{task.description:<14}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with RichProgress(*columns, console=Console(stderr=True)) as display:
        yield _Bars(display)


@contextmanager
def running(name: str) -> Iterator[None]:
    """Show a run's warnings as sentences, and say what Ctrl-C leaves a person with, bars or not."""
    shown_otherwise = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, CacheWarning | Renamed):
            print(f"{name}: {printable(str(message))}", file=sys.stderr)
        else:
            shown_otherwise(message, category, *where, **more)

    try:
        with warnings.catch_warnings(), _ending_softly():
            warnings.simplefilter("always", CacheWarning)
            warnings.simplefilter("always", Renamed)
            warnings.showwarning = show
            yield
    except (KeyboardInterrupt, SystemExit) as ended:
        # Typer turns Ctrl-C into an exit code, without a word.
        code = ended.code if isinstance(ended, SystemExit) else _STOPPED
        if code != _STOPPED and code not in _ENDINGS:
            raise
        by = f" by {_ENDINGS[code].name}" if code in _ENDINGS else ""
        with contextlib.suppress(OSError):  # the terminal may be what went away
            print(f"{name}: stopped{by}. Run the same command again to continue.", file=sys.stderr)
        raise SystemExit(code) from None


@contextmanager
def _ending_softly() -> Iterator[None]:
    """Let the signals by which systems end programs unwind the work, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        del frame
        raise SystemExit(128 + number)

    before = {each: signal.getsignal(each) for each in _ENDINGS.values()}
    for each, handler in before.items():
        if handler != signal.SIG_IGN:  # as `nohup` asks
            signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)


def tidy_cache() -> None:
    """Sweep away what dead processes left in the cache, and hold it to its bound."""
    from vprompt.core import shelves

    with contextlib.suppress(OSError):
        shelves.sweep()
        shelves.hold_to_limit()


def say(text: str) -> None:
    """Print a line, whatever names of strangers it holds; who reads a pipe has it at once."""
    print(printable(text), flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; numbers to the right."""
    numeric = [
        all(
            re.sub("[.,]", "", row[column].rstrip(" %")).lstrip("-").isdecimal()
            for row in rows
            if row[column]
        )
        for column in range(len(heads))
    ]
    if len(rows) > _FOLDED:
        _plain_table(heads, rows, numeric)
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for head, right in zip(heads, numeric, strict=True):
        drawn.add_column(printable(head), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(printable, row))
    # A pipe gets the whole line, a window gets its own width.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False).print(drawn)


def _plain_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> None:
    """Print aligned columns whole, however wide: to fold a thousand rows takes seconds."""
    from rich.cells import cell_len

    cells = [
        [printable(head) for head in heads],
        *([printable(cell) for cell in row] for row in rows),
    ]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(heads))]
    lines = []
    for row in cells:
        padding = [" " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True)]
        columns = zip(row, padding, numeric, strict=True)
        lines.append("  ".join(p + c if right else c + p for c, p, right in columns).rstrip())
    print("\n".join(lines))


@contextmanager
def reading_record(path: Path) -> Iterator[None]:
    """Say that a record is not whole where something in it is missing or of another kind.

    A record may come from a stranger, and what reads it trusts its form.
    """
    try:
        yield
    except VPromptError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise VPromptError(
            f"{path} is not the whole record of a run: {type(error).__name__} {error}."
        ) from error


def show(
    outcome: Any,
    output: Path | None,
    report: Path | None,
    freeze_report: bool = False,
    scale_path: Path | None = None,
) -> None:
    """Print what a run found, where it is, and, where asked, every tensor that was trained.

    `scale_path` is where the scales of a sum of moves are drawn.
    """
    from vprompt.report import write_report
    from vprompt.results import advice

    run = outcome.run
    if "transfer" in run:
        sources = sorted(run["transfer"]["sources"], key=lambda source: -source["weight"])
        sizes = run.get("moves", {}).get("sizes", {})
        scored = sources[0]["hscore"] is not None
        heads = ["source", "weight", *(["H-score"] if scored else [])]
        table(
            [*heads, *(["size of its move"] if sizes else [])],
            [
                [
                    s["name"],
                    f"{s['weight']:.3f}",
                    *([f"{s['hscore']:.3f}"] if scored else []),
                    *([f"{sizes[s['name']]:.2f}"] if sizes else []),
                ]
                for s in sources
            ],
        )
        print(f"even weights would be {1 / len(sources):.3f}\n")
    if "moves" in run:
        _scales(run["moves"])
    if outcome.test:
        measurements(run["task"]["name"], outcome.test)
    tuning = run["tuning"]
    if "started_from" in run:
        say(f"\nstarted from: {run['started_from']}")
    say(f"{tuning['kept']}" if "started_from" in run else f"\n{tuning['kept']}")
    parameters = tuning["parameters"]
    parts = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    trained = sum(parameters.values())
    whole = trained + tuning["frozen"]
    say(
        f"trainable params: {trained:,} ({parts}) || all params: {whole:,} || "
        f"trainable%: {100 * trained / whole:.4f}"
    )
    if run["protocol"]:
        departures = run["protocol"]["departures"]
        say(f"departures from protocol {run['protocol']['name']}: {len(departures) or 'none'}")
        for sentence in departures:
            say(f"  {sentence}")
    if freeze_report:
        _freeze_report(run)
    if run["command"] == "combine":
        for sentence in advice.after_combining(run, None if output is None else str(output)):
            print(printable(sentence))
    if output is not None:
        say(f"artefact: {output}")
    if scale_path is not None:
        from vprompt.report.scales import write_scale_path

        write_scale_path(run, scale_path)
        say(f"scales:   {scale_path}")
    if report is not None:
        write_report(run, report)
        say(f"report:   {report}")


def _scales(moves: Mapping[str, Any]) -> None:
    """Print the scales that were looked at, which was taken, and what the pool is worth."""
    rows = []
    for point in moves["path"]:
        judged = point["cv_loss"] is not None
        taken = "members" not in moves and point["name"] == moves["chosen"]
        rows.append(
            [
                point["name"],
                f"{point['alike']:.2f}",
                f"{point['cv_loss']:.3f}" if judged else "",
                f"{100 * point['cv_accuracy']:.1f} %" if judged else point["problem"] or "",
                "yes" if taken else "",
            ]
        )
    held = moves["held_out"]
    if "members" in moves:
        name = f"ensemble of {len(moves['members'])}, x{moves['member_scale']:g}"
        cells = [f"{held['loss']:.3f}", f"{100 * held['accuracy']:.1f} %"] if held else ["", ""]
        rows.append([name, "", *cells, "" if moves["unused"] else "yes"])
    elif moves.get("forms"):
        rows.append(["ensemble", "", f"{moves['forms']['ensemble']:.3f}", "", ""])
    heads = ["scale of the move", "likeness", "held-out loss", "held-out accuracy", "taken"]
    table(heads, rows)
    say(f"\n{moves['verdict']}\n")


def measurements(task: str, found: dict[str, Any]) -> None:
    """Print what was measured on a test split, each candidate with its gain over the first."""
    from vprompt.cli import measuring

    for heads, rows in measuring.tables(task, {name: m.to_json() for name, m in found.items()}):
        table(heads, rows)


def _freeze_report(run: dict[str, Any]) -> None:
    """Print the shape and size of every tensor that was trained, and what stayed frozen."""
    tuning, backbone = run["tuning"], run["backbone"]
    rows = [
        [name, " x ".join(map(str, shape)) or "1", f"{math.prod(shape):,}"]
        for name, shape in tuning["trained"].items()
    ]
    rows.append(["head", "", f"{tuning['parameters']['head']:,}"])
    print()
    table(["trained", "shape", "numbers"], rows)
    say(f"frozen of {backbone['name']}: {tuning['frozen']:,} numbers")


def scores(found: Any, metric: str, as_json: bool) -> None:
    """Print the sources by one metric, best first, or by several."""
    if isinstance(found, dict):
        _rankings(found, as_json)
    elif as_json:
        print(json.dumps([{"source": name, "score": value} for name, value in found], indent=2))
    else:
        table(["source", metric], [[name, f"{value:.4f}"] for name, value in found])


def _rankings(found: Mapping[str, Any], as_json: bool) -> None:
    """Print every metric's score and rank of every source, and why there is none where not."""
    if as_json:
        plain = {
            name: {"scores": dict(s.ranked), "missing": s.missing, "seconds": round(s.seconds, 4)}
            for name, s in found.items()
        }
        print(json.dumps(plain, indent=2))
        return
    order = {source: None for s in found.values() for source, _ in s.ranked}
    rows = []
    for source in order:
        cells = [source]
        for each in found.values():
            place = [name for name, _ in each.ranked]
            held = source in place
            value = dict(each.ranked)[source] if held else 0.0
            cells.append(f"{value:.4g} ({place.index(source) + 1})" if held else "")
        rows.append(cells)
    table(["source", *found], rows)
    for metric, each in found.items():
        reasons: dict[str, list[str]] = {}
        for source, reason in each.missing.items():
            reasons.setdefault(reason, []).append(source)
        for reason, sources in reasons.items():
            print(printable(f"no {metric} for {', '.join(sources)}: {reason}"))
