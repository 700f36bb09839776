"""Command line of `vprompt pool`: look at a folder of prompts."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import terminal
from vprompt.cli.options import JsonOption

_CHECKS = (
    "the config is complete and of a known format",
    "every tensor is there, of its shape and finite, and no other",
    "no pickle, no link out of the folder",
)
_FIT = ("weights, sizes and preprocessing are the backbone's", "the start of the prompt")

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
        str | None,
        typer.Option("--model", "--backbone", help="Also check that they fit this backbone."),
    ] = None,
) -> None:
    """Read every artefact of a pool whole and report problems."""
    from vprompt import opening
    from vprompt.artifacts import pool as pools
    from vprompt.artifacts import whole

    backbone = opening.open_pool_backbone(pool, model) if model else None
    entries = pools.check(pool, backbone)
    terminal.say(f"checked of each: {'; '.join([*_CHECKS, *_FIT[: len(_FIT) * bool(model)]])}")
    if not model:
        terminal.say("not checked, for want of --model: whether it fits a backbone, and its start")
    found = [entry for entry in entries if not entry.stray]
    for entry in entries:
        if entry.stray:
            terminal.say(f"left out {entry.name} ({entry.promptless})")
    bad = [entry for entry in found if entry.problem]
    for entry in bad:
        terminal.say(f"{entry.name}: {entry.problem}")
    for entry in found:
        if entry.config is not None and not entry.problem:
            digest = "" if whole.DIGESTS in entry.config else "; no digest: it is older than those"
            moved = _move(entry.config, entry.start)
            terminal.say(f"{entry.name}: {moved}{digest}")
    terminal.say(f"{len(found) - len(bad)} of {len(found)} artefacts are sound")
    if bad or not found:
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
    terminal.say(f"sealed: {artifact}")


@app.command("show")
def pool_show(artifact: Annotated[Path, typer.Argument(help="One artefact folder.")]) -> None:
    """Show an artefact's card, and how far its prompt moved from its start."""
    from vprompt.opening import open_artifact

    loaded = open_artifact(artifact)
    terminal.say(f"{loaded.name}: {_move(loaded.config, '')}\n")
    terminal.say(loaded.card or json.dumps(loaded.config, indent=2, sort_keys=True))
