"""Options: what commands have in common that is no setting of a verb, and how it is read."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.core.errors import Renamed, VPromptError
from vprompt.core.files import check_free
from vprompt.core.progress import Progress
from vprompt.core.settings import OUTPUT

OLD = {"--allow-absent-classes": "--allow-absent"}  # options of an earlier release
LEARNING = "vpt"  # the method of `learn`, where none is named
TaskArgument = Annotated[
    str,
    typer.Argument(
        help="A folder of class folders, perhaps below `train/` and `test/`; a VTAB-1k folder "
        "(`DIR` or `DIR:prefix`); a list (.csv, .jsonl, ...) with the columns image, label and "
        "perhaps split; or a built-in task such as `elpv`. docs/data.md shows every layout."
    ),
]
OptionalTaskArgument = Annotated[
    str | None, typer.Argument(help="As for `learn`; left out where a recipe names it.")
]
ReportOption = Annotated[
    Path | None,
    typer.Option(help="HTML file to write the report to.", rich_help_panel=OUTPUT, metavar="PATH"),
]
ScalePathOption = Annotated[
    Path | None,
    typer.Option(
        help="SVG file for the scales of the moves.", rich_help_panel=OUTPUT, metavar="PATH"
    ),
]
FreezeReportOption = Annotated[
    bool,
    typer.Option(
        "--freeze-report",
        help="Print every tensor that was trained.",
        rich_help_panel=OUTPUT,
        metavar="",
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress bars.", rich_help_panel=OUTPUT, metavar=""),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT, metavar="")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
ArtifactOption = Annotated[Path, typer.Option(help="Artefact folder, or hf-hub:user/name.")]
BackboneOption = Annotated[
    str | None,
    typer.Option("--model", "--backbone", help="Default: the one that the artefact names."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Use prompts of another backbone or preprocessing.")
]


def check_places(**places: Path | None) -> None:
    """Raise VPromptError for a place that cannot be written, by its option, before the work."""
    from vprompt.core.files import check_writable

    for name, place in places.items():
        if place is not None:
            if place.is_dir():
                raise VPromptError(f"--{name.replace('_', '-')} {place} is a folder; name a file.")
            check_writable(place, f"--{name.replace('_', '-')}")


def check_place(given: Mapping[str, Any]) -> None:
    """Refuse a place that is taken at once, before torch is imported, which takes seconds."""
    check_free(given.get("output"), overwrite=given.get("overwrite", False))


def say_if_not_kept(given: Mapping[str, Any], progress: Progress) -> None:
    """Say before a training starts that nothing of it will be left."""
    if given.get("output") is None:
        progress.say(
            "without --output the prompt is measured and not kept; to keep it, add --output FOLDER"
        )


def of_today(words: list[str]) -> list[str]:
    """Return what was typed with today's options for those of an earlier release, and say so."""
    found = []
    for word in words:
        option, equals, value = word.partition("=")
        today = OLD.get(option)
        if today is not None:
            warnings.warn(
                f"{option} is {today} now; the old spelling goes with the next release.",
                Renamed,
                stacklevel=2,
            )
        found.append(word if today is None else today + equals + value)
    return found


def with_settings(method: str, extra: dict[str, Any]) -> str:
    """Add what short flags say to a method's settings."""
    from vprompt.core import registry

    spec = registry.parse(method)
    given = {key: value for key, value in extra.items() if value is not None}
    return str(registry.Spec(spec.name, {**spec.settings, **given}))


def read_grid(entries: list[str]) -> dict[str, list[float]]:
    """Read `lr=0.01,0.03`."""
    grid = {}
    for entry in entries:
        name, _, values = entry.partition("=")
        try:
            grid[name.strip().replace("-", "_")] = [float(value) for value in values.split(",")]
        except ValueError:
            raise VPromptError(f"--grid reads `lr=0.01,0.03`, but got {entry!r}.") from None
    return grid


def at_home(word: str) -> str:
    """Return a word with the home folder for `~`, also in `--option=~/x`, as a shell does not."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = value == "~" or value.startswith("~/") or value.startswith("~\\")
    return option + equals + os.path.expanduser(value) if is_path else word
