"""Command line of `vprompt share`: artefacts to and from a model hub."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import terminal
from vprompt.cli.options import JsonOption, OverwriteOption, QuietOption
from vprompt.core.files import check_free

app = typer.Typer(help="Send prompts to a model hub, fetch and find them.", no_args_is_help=True)


@app.command("push")
def share_push(
    artifact: Annotated[Path, typer.Argument(help="Artefact folder.")],
    repo: Annotated[
        str, typer.Argument(help="The repository, as user/name. It is made if it is not there.")
    ],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Whether a new repository is private.")
    ] = True,
    revision: Annotated[str | None, typer.Option(help="The branch. Default: main.")] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload a visual prompt",
    title: Annotated[
        str | None, typer.Option(help="A name for the task, instead of its classes.")
    ] = None,
    keep_places: Annotated[
        bool, typer.Option("--keep-places", help="Send paths and folder names of this disk, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show exactly what would be sent, and send nothing.")
    ] = False,
) -> None:
    """Check an artefact and upload it. Its card and run.json tell how it was made."""
    from vprompt.artifacts import hub

    if dry_run:
        _show(hub.pack(artifact, repo, title=title, keep_places=keep_places), private)
        return
    terminal.say(
        hub.push(
            artifact,
            repo,
            private=private,
            revision=revision,
            message=message,
            title=title,
            keep_places=keep_places,
        )
    )


def _show(parcel: Any, private: bool) -> None:
    """Print every file of a parcel: texts in full, tensors by name and shape."""
    from vprompt.artifacts.codec import shapes

    kind = "private" if private else "public"
    terminal.say(f"nothing is sent; to {parcel.repo}, made {kind} if it is not there, would go:")
    for name, data in parcel.files.items():
        terminal.say(f"\n== {name}, {len(data):,} bytes")
        if name.endswith(".safetensors"):
            for tensor, shape in shapes(data).items():
                terminal.say(f"{tensor} {shape}")
        else:
            terminal.say(data.decode())
    for note in parcel.notes:
        terminal.say(f"\n{note}")


@app.command("pull")
def share_pull(
    artifact: Annotated[str, typer.Argument(help="hf-hub:user/name, or with @revision.")],
    output: Annotated[
        Path | None, typer.Option(help="Also copy it to this folder. Default: only the cache.")
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch an artefact, check it, and print its folder."""
    check_free(output, overwrite=overwrite)
    from vprompt.artifacts import hub

    with terminal.progress(quiet) as progress:
        folder = hub.pull(artifact, output=output, overwrite=overwrite, progress=progress)
    terminal.say(str(folder))


@app.command("find")
def share_find(
    query: Annotated[str | None, typer.Argument(help="A word in the name.")] = None,
    backbone: Annotated[
        str | None, typer.Option("--model", "--backbone", help="Only prompts for this backbone.")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most this many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the prompts on the hub, by name and backbone."""
    from vprompt.artifacts import hub

    found = hub.find(query, backbone=backbone, limit=limit)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    rows = [[each.artifact, each.backbone, str(each.downloads), each.updated] for each in found]
    heads = ["artefact", "backbone", "downloads", "updated"]
    terminal.table(heads, [[terminal.printable(cell) for cell in row] for row in rows])
