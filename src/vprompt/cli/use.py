"""Command line of what one does with an artefact: label images, measure it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import options, terminal
from vprompt.cli.options import (
    AbsentOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    QuietOption,
    SkipBadOption,
    TaskArgument,
)
from vprompt.core.errors import VPromptError

ArtifactOption = Annotated[Path, typer.Option(help="Artefact folder, or hf-hub:user/name.")]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--backbone",
        help="The backbone, if it is not found by the name in the artefact.",
    ),
]
ExactnessOption = Annotated[str, typer.Option(help="Precision: auto, bf16, fp32.")]


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Image files, folders and lists; or one list with the columns image and artifact."
        ),
    ],
    artifact: Annotated[
        Path | None,
        typer.Option(help="Artefact folder, or hf-hub:user/name. Leave it out if a list names it."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A .csv or .json file. Default: print.")
    ] = None,
    model: BackboneOption = None,
    device: DeviceOption = "auto",
    precision: ExactnessOption = "auto",
    force: ForceOption = False,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Label images with an artefact, or every image of a table with the artefact it names."""
    from vprompt.data import lists
    from vprompt.inference import prediction

    if output is not None and output.suffix not in (".csv", ".json"):
        raise VPromptError(f"--output is a .csv or .json file, but got {str(output)!r}.")
    options.check_places(output=output)
    table = lists.is_list(images[0]) and len(images) == 1
    if artifact is None and not table:
        raise VPromptError(
            "predict needs an --artifact, or in place of the images one list (.csv, .jsonl, ...) "
            "with the columns image and artifact."
        )
    settings: dict[str, Any] = {
        "model": model,
        "device": device,
        "precision": precision,
        "force": force,
        "skip_bad": skip_bad,
    }
    with terminal.progress(quiet) as progress:
        settings["progress"] = progress
        if artifact is None:
            found = prediction.predict_table(images[0], **settings)
        else:
            found = prediction.predict(images, artifact=artifact, **settings)
    if output is not None:
        prediction.write(found, output)
        terminal.say(f"{len(found)} predictions in {output}")
    elif as_json:
        print(prediction.as_json(found))
    else:
        heads = ["image", *(["artifact"] if artifact is None else []), "label", "probability"]
        rows = [[p.image, p.artifact, *p.answer.shown()] for p in found]
        if all(p.value is not None for p in found):
            heads, rows = [*heads[:-2], "value"], [row[:-1] for row in rows]
        terminal.table(heads, [[cell for cell in row if cell is not None] for row in rows])


def evaluate(
    task: TaskArgument,
    artifact: ArtifactOption,
    model: BackboneOption = None,
    device: DeviceOption = "auto",
    precision: ExactnessOption = "auto",
    force: ForceOption = False,
    skip_bad: SkipBadOption = False,
    allow_absent_classes: AbsentOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure an artefact on test images; if it has a text tower, also on classes it never saw."""
    from vprompt.inference import evaluation

    with terminal.progress(quiet) as progress:
        found = evaluation.evaluate(
            task,
            artifact=artifact,
            model=model,
            device=device,
            precision=precision,
            force=force,
            skip_bad=skip_bad,
            allow_absent=allow_absent_classes,
            progress=progress,
        )
    if as_json:
        print(json.dumps({name: m.to_json() for name, m in found.items()}, indent=2))
    else:
        terminal.measurements(task, found)
