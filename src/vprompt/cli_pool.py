"""Command line of `vprompt pool`: look at a folder of prompts."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vprompt import terminal
from vprompt.options import JsonOption

app = typer.Typer(help="Look at a folder of prompts.", no_args_is_help=True)


@app.command("ls")
def pool_list(pool: Annotated[Path, typer.Argument()], as_json: JsonOption = False) -> None:
    """List the prompts of a pool."""
    from vprompt import catalogue

    rows = catalogue.rows(pool)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    heads = ["name", "task", "classes", "tokens", "backbone", "test accuracy", "problem"]
    terminal.table(heads, [[str(row[head]) for head in heads] for row in rows])


@app.command("check")
def pool_check(
    pool: Annotated[Path, typer.Argument()],
    model: Annotated[
        str | None, typer.Option("--model", "--backbone", help="Also check the fit.")
    ] = None,
) -> None:
    """Read every artefact of a pool whole and report problems."""
    from vprompt import opening
    from vprompt import pool as pools

    backbone = opening.open_pool_backbone(pool, model) if model else None
    entries = pools.check(pool, backbone)
    bad = [entry for entry in entries if entry.problem]
    for entry in bad:
        print(terminal.printable(f"{entry.name}: {entry.problem}"))
    print(f"{len(entries) - len(bad)} of {len(entries)} artefacts are sound")
    if bad:
        raise typer.Exit(1)


@app.command("show")
def pool_show(artifact: Annotated[Path, typer.Argument(help="One artefact folder.")]) -> None:
    """Show an artefact's card."""
    from vprompt import artifact as artifacts
    from vprompt import hub

    loaded = artifacts.load(hub.folder_of(artifact))
    print(terminal.printable(loaded.card or json.dumps(loaded.config, indent=2, sort_keys=True)))
