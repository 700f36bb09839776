"""Command line of `vprompt lengths`: what a search found and how, and accuracy over budgets."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import terminal
from vprompt.cli.options import JsonOption


def lengths(
    runs: Annotated[
        list[Path], typer.Argument(help="A run.json or an artefact; several make a curve.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="A .svg or .png file for the picture.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the lengths that a search found; for several runs, accuracy over the prompt's size."""
    from vprompt.artifacts import artifact
    from vprompt.report.canvas import check_suffix

    if output is not None:
        check_suffix(output)
    records = [artifact.read_run(path) for path in runs]
    with terminal.reading_record(runs[0] if len(runs) == 1 else Path("One of these")):
        if len(records) == 1:
            _one(records[0], output, as_json)
        else:
            _several(records, output, as_json)
    if output is not None and not as_json:
        terminal.say(f"picture: {output}")


def _one(record: dict[str, Any], output: Path | None, as_json: bool) -> None:
    from vprompt.report import searched

    rows, summary = searched.rows(record), searched.summary(record)
    if output is not None:
        searched.drawing(record).save(output)
    if as_json:
        print(json.dumps({"summary": summary, "blocks": rows}, indent=2))
        return
    candidates = list(rows[0]["weights"])
    terminal.table(
        ["branch", "block", "found", *(f"weight of {length}" for length in candidates)],
        [
            [row["branch"], str(row["block"]), str(row["found"])]
            + [f"{row['weights'][length]:.2f}" for length in candidates]
            for row in rows
        ],
    )
    terminal.say(summary)


def _several(records: list[dict[str, Any]], output: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from vprompt.report import budgets

    found, measured = budgets.points(records), budgets.where(records)
    if output is not None:
        budgets.drawing(found, measured).save(output)
    if as_json:
        points = [asdict(point) for point in found]
        print(json.dumps({"measured on": measured, "points": points}, indent=2))
        return
    terminal.table(
        ["lengths", "tokens", f"{measured} accuracy"],
        [[p.series, str(p.tokens), f"{100 * p.accuracy:.1f} %"] for p in found],
    )
