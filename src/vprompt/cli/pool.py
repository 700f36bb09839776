"""Command line of `vprompt pool`: look at a folder of prompts."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import terminal
from vprompt.cli.options import JsonOption

app = typer.Typer(help="Look at a folder of prompts.", no_args_is_help=True)


@app.command("ls")
def pool_list(pool: Annotated[Path, typer.Argument()], as_json: JsonOption = False) -> None:
    """List the prompts of a pool."""
    from vprompt.artifacts import catalogue

    rows = catalogue.rows(pool)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    heads = ["name", "task", "classes", "tokens", "move", "backbone", "test accuracy", "problem"]
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
    from vprompt.artifacts import pool as pools
    from vprompt.artifacts import whole

    backbone = opening.open_pool_backbone(pool, model) if model else None
    entries = pools.check(pool, backbone)
    bad = [entry for entry in entries if entry.problem]
    for entry in bad:
        print(terminal.printable(f"{entry.name}: {entry.problem}"))
    for entry in entries:
        if entry.config is not None and not entry.problem:
            digest = "" if whole.DIGESTS in entry.config else "; no digest: it is older than those"
            moved = _move(entry.config, entry.start)
            print(terminal.printable(f"{entry.name}: {moved}{digest}"))
    print(f"{len(entries) - len(bad)} of {len(entries)} artefacts are sound")
    if bad:
        raise typer.Exit(1)


def _move(config: dict[str, Any], start: str) -> str:
    """Say how far a prompt moved from its start, and how that start is known."""
    from vprompt.artifacts import catalogue

    if not sum(config["num_virtual_tokens"]):
        return "no prompt, so nothing that a sum could use"
    size = catalogue.move_of(config)
    known = f", its start {start}" if start else ""
    if not size:
        return f"how far it moved is not recorded{known}"
    moved = (
        f"moved by {size} of its start" if size[0].isdigit() else "is its start: carries nothing"
    )
    return f"{moved}{known}"


@app.command("seal")
def pool_seal(artifact: Annotated[Path, typer.Argument(help="One artefact folder.")]) -> None:
    """Record the digests of an artefact as it is now, after an edit by hand or for an old one."""
    from vprompt.artifacts import artifact as artifacts

    artifacts.seal(artifact)
    print(terminal.printable(f"sealed: {artifact}"))


@app.command("show")
def pool_show(artifact: Annotated[Path, typer.Argument(help="One artefact folder.")]) -> None:
    """Show an artefact's card, and how far its prompt moved from its start."""
    from vprompt.artifacts import artifact as artifacts
    from vprompt.artifacts import hub

    loaded = artifacts.load(hub.folder_of(artifact))
    print(terminal.printable(f"{loaded.name}: {_move(loaded.config, '')}\n"))
    print(terminal.printable(loaded.card or json.dumps(loaded.config, indent=2, sort_keys=True)))
