"""Command line of what one does with an artefact: label images, measure it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import commands, options, terminal
from vprompt.cli.options import JsonOption, QuietOption, TaskArgument
from vprompt.core.errors import VPromptError
from vprompt.core.settings import OUTPUT
from vprompt.verbs import EvaluateSettings, PredictSettings


@commands.of_verb(PredictSettings, optional=["artifact"])
def predict(
    given: dict[str, Any],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Image files, folders and lists; or one list with the columns image and artifact."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="A .csv or .json file. Default: print.", rich_help_panel=OUTPUT, metavar="PATH"
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Label images with an artefact, or every image of a table with the artefact it names."""
    from vprompt.data import lists
    from vprompt.inference import prediction

    if output is not None and output.suffix not in (".csv", ".json"):
        raise VPromptError(f"--output is a .csv or .json file, but got {str(output)!r}.")
    options.check_places(output=output)
    table = "artifact" not in given
    if table and not (lists.is_list(images[0]) and len(images) == 1):
        raise VPromptError(
            "predict needs an --artifact, or in place of the images one list (.csv, .jsonl, ...) "
            "with the columns image and artifact."
        )
    with terminal.progress(quiet) as progress:
        if table:
            found = prediction.predict_table(images[0], **given, progress=progress)
        else:
            found = prediction.predict(images, **given, progress=progress)
    if output is not None:
        prediction.write(found, output)
        terminal.say(f"{len(found)} predictions in {output}")
    elif as_json:
        print(prediction.as_json(found))
    else:
        heads = ["image", *(["artifact"] if table else []), "label", "probability"]
        rows = [[p.image, p.artifact, *p.answer.shown()] for p in found]
        if all(p.value is not None for p in found):
            heads, rows = [*heads[:-2], "value"], [row[:-1] for row in rows]
        terminal.table(heads, [[cell for cell in row if cell is not None] for row in rows])


@commands.of_verb(EvaluateSettings)
def evaluate(
    given: dict[str, Any],
    task: TaskArgument,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure an artefact on test images; if it has a text tower, also on classes it never saw."""
    from vprompt.inference import evaluation

    with terminal.progress(quiet) as progress:
        found = evaluation.evaluate(task, **given, progress=progress)
    if as_json:
        print(json.dumps({name: m.to_json() for name, m in found.items()}, indent=2))
    else:
        terminal.measurements(task, found)
