"""Command line of `vprompt report`: the report of a run that is over."""

from pathlib import Path
from typing import Annotated

import typer

from vprompt.cli import terminal


def report(
    artifact: Annotated[Path, typer.Argument(help="Artefact folder, or a run.json.")],
    output: Annotated[Path, typer.Option(help="HTML file to write the report to.")],
) -> None:
    """Write the report of an artefact's run, as --report does at its end."""
    from vprompt.artifacts import artifact as artifacts
    from vprompt.artifacts import hub
    from vprompt.core.files import check_writable
    from vprompt.report import write_report

    check_writable(output, "--output")
    record = artifacts.read_run(hub.folder_of(artifact))
    with terminal.reading_record(artifact):
        write_report(record, output)
    terminal.say(f"report: {output}")
