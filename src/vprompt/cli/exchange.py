"""Command line of what leaves for other programs and comes from them: export, import."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vprompt.cli import terminal
from vprompt.cli.options import (
    BackboneOption,
    ForceOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
)
from vprompt.core.errors import VPromptError


def export(
    artifact: Annotated[Path, typer.Argument(help="Artefact folder, or hf-hub:user/name.")],
    to: Annotated[str, typer.Option(help="onnx, torch or safetensors-timm.")],
    output: Annotated[
        Path | None, typer.Option(help="A .onnx or .pt2 file, or a folder for timm.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Check on this image; may be repeated.")
    ] = None,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="The model takes uint8 pixels of any size.")
    ] = False,
    opset: Annotated[int, typer.Option(help="Operator set of an ONNX file.")] = 18,
    external_data: Annotated[
        bool | None,
        typer.Option(
            "--external-data/--one-file",
            help="Weights beside an ONNX file, or in it. Default: beside it above 2 GB.",
        ),
    ] = None,
    model: BackboneOption = None,
    force: ForceOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write backbone, prompt and head as one model of another program, checked on real images."""
    from vprompt.exchange import exporting

    with terminal.progress(quiet) as progress:
        found = exporting.export(
            artifact,
            to=to,
            output=output,
            model=model,
            images=image or (),
            preprocess=preprocess,
            opset=opset,
            external_data=external_data,
            overwrite=overwrite,
            force=force,
            progress=progress,
        )
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        terminal.say("\n".join(exporting.lines(found)))


def import_prompt(
    file: Annotated[Path, typer.Argument(help="A checkpoint; for PEFT, its folder.")],
    program: Annotated[
        str, typer.Option("--from", help="vpt, vtab, coop, maple, pro_vpt, dpl or peft.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the artefact to.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "--backbone", help="The backbone that it was learned on."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names in the order of training: 'cat,dog', or a file of lines."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="The sentence around class names, with {}.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Mean that the original normalised by: '0.5,0.5,0.5'.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Standard deviation that it normalised by.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--image-size",
            "--img-size",
            help="Pixels of a square, or HEIGHTxWIDTH. Default: the model's.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a checkpoint of another program into an artefact. No code in it is run."""
    from vprompt.data.preprocessing import read_size
    from vprompt.exchange import importing

    with terminal.progress(quiet) as progress:
        found = importing.import_file(
            file,
            program=program,
            output=output,
            model=model,
            classes=_names(classes),
            template=template,
            mean=_three("--mean", mean),
            std=_three("--std", std),
            image_size=None if image_size is None else read_size(image_size),
            overwrite=overwrite,
            progress=progress,
        )
    for sentence in found.said:
        terminal.say(sentence)
    terminal.say(str(output))


def _names(text: str | None) -> list[str] | None:
    """Return class names, from a file of lines or from the text itself."""
    if text is None:
        return None
    path = Path(text).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise VPromptError(f"--classes names {path}, which cannot be read: {error}.") from None
    names = [line.strip() for line in lines if line.strip()]
    if len(set(names)) < len(names):
        raise VPromptError("--classes has a name twice.")
    return names


def _three(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != 3:
        raise VPromptError(f"{option} is three numbers such as '0.5,0.5,0.5', but got {text!r}.")
    return found
