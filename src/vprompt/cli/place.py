"""Command line of `vprompt placement`: where a prompt's tokens stand, and how they came there."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vprompt.cli import options, terminal
from vprompt.cli.options import JsonOption


def placement(
    run: Annotated[Path, typer.Argument(help="A run.json, or an artefact that holds one.")],
    output: Annotated[
        Path | None, typer.Option(help="A .svg or .png file for the picture.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the tokens of a `pro_vpt` run moved between blocks."""
    from vprompt.artifacts import artifact
    from vprompt.report import placement as pictures

    options.check_places(output=output)
    record = artifact.read_run(run)
    with terminal.reading_record(run):
        rows, summary = pictures.flows(record), pictures.summary(record)
        drawn = None if output is None else pictures.drawing(record)
    if drawn is not None and output is not None:
        drawn.save(output)
    if as_json:
        print(json.dumps({"summary": summary, "blocks": rows}, indent=2))
        return
    heads = ["block", "start", "left", "came", "kept"]
    terminal.table(heads, [[str(row[head]) for head in heads] for row in rows])
    terminal.say(summary)
    if output is not None:
        terminal.say(f"picture: {output}")
