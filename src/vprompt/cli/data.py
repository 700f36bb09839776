"""Command line of `vprompt data`: list, verify and build image sets in the VTAB-1k format."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import terminal
from vprompt.cli.options import JsonOption, OverwriteOption, QuietOption

app = typer.Typer(help="List, verify and build image sets.", no_args_is_help=True)


@app.command("ls")
def data_list(
    root: Annotated[Path, typer.Argument(help="A folder of VTAB-1k folders, or one of them.")],
    as_json: JsonOption = False,
) -> None:
    """List the tasks in a folder; those of VTAB in the order of the published tables."""
    from vprompt.core.errors import VPromptError
    from vprompt.data.verify import tasks_in

    if not root.is_dir():
        raise VPromptError(f"No folder at {root}.")
    rows = tasks_in(root)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    heads = ["name", "vtab", "group", "classes", "train800", "val200", "test", "problem"]
    cells = [["" if row[head] is None else str(row[head]) for head in heads] for row in rows]
    terminal.table(["task", "VTAB", *heads[2:]], cells)


@app.command("verify")
def data_verify(
    paths: Annotated[
        list[str], typer.Argument(help="VTAB-1k folders (`DIR` or `DIR:prefix`), or roots of them.")
    ],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read every image and list: counts, classes, duplicates, losses, fingerprints.

    Ends with 1 if there is an error; warnings leave 0.
    """
    from vprompt.data.verify import verify

    with terminal.progress(quiet) as progress:
        found = verify(paths, progress=progress)
    if as_json:
        print(json.dumps([each.to_json() for each in found], indent=2))
    else:
        _show(found)
    if not all(each.sound for each in found):
        raise typer.Exit(1)


@app.command("build")
def data_build(
    names: Annotated[
        list[str], typer.Argument(help="VTAB tasks, such as cifar, dtd, svhn, under any name.")
    ],
    root: Annotated[Path, typer.Option(help="Where torchvision keeps, or downloads, its data.")],
    output: Annotated[Path, typer.Option(help="Every task becomes a folder in it.")],
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision fetch what is missing.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Draw other examples than VTAB-1k's own.")
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write VTAB-1k folders from torchvision's data sets, without loss."""
    from vprompt.data.build import build
    from vprompt.data.sources import named_task

    for name in names:
        named_task(name)  # a mistake in the last name is told before the first is built
    for name in names:
        with terminal.progress(quiet) as progress:
            folder, meta = build(
                name,
                root=root,
                output=output,
                seed=seed,
                download=download,
                overwrite=overwrite,
                progress=progress,
            )
        sizes = ", ".join(f"{part['images']:,} {s}" for s, part in meta["splits"].items())
        which = "VTAB-1k's own" if meta["official_examples"] else "not VTAB-1k's own"
        terminal.say(f"{folder}: {sizes} images; the examples are {which}")
        for deviation in meta["deviations"]:
            terminal.say(f"  note: {deviation}")
    terminal.say(f"check: vprompt data verify {output}")


def _show(found: list[Any]) -> None:
    from vprompt.data.checks import count

    rows = []
    for each in found:
        for split, facts in each.splits.items():
            rows.append(
                [
                    each.name,
                    split,
                    str(facts.images),
                    f"{facts.classes} of {each.classes}",
                    f"{facts.fewest} to {facts.most}",
                    " ".join(facts.formats),
                    _sizes(facts.smallest, facts.largest),
                    facts.files[len("sha256:") :][:12],
                    facts.pixels[len("sha256:") :][:12],
                ]
            )
    heads = ["task", "split", "images", "classes", "per class", "format", "size"]
    terminal.table([*heads, "files", "pixels"], rows)
    levels = {"error": 0, "warning": 0, "note": 0}
    for each in found:
        for finding in each.findings:
            levels[finding.level] += 1
            terminal.say(f"{finding.level}: {each.name}: {finding.text}")
    counts = ", ".join(count(number, level) for level, number in levels.items())
    terminal.say(f"{count(len(found), 'task')}: {counts}")


def _sizes(smallest: tuple[int, int], largest: tuple[int, int]) -> str:
    least, most = ("x".join(map(str, size)) for size in (smallest, largest))
    return least if least == most else f"{least} to {most}"
