"""Command line of `vprompt combine`: a pool's prompts for a new task with few images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import commands, options, terminal
from vprompt.cli.options import (
    FreezeReportOption,
    OptionalTaskArgument,
    QuietOption,
    ReportOption,
    ScalePathOption,
)
from vprompt.core.errors import VPromptError
from vprompt.core.settings import WHAT
from vprompt.learning.train_config import COMBINE
from vprompt.verbs import CombineSettings

# An ensemble is not tuned, and one prompt is.
USUAL = {**COMBINE, "epochs": "0 for an ensemble, else 10"}


@commands.of_verb(CombineSettings, usual=USUAL, optional=["pool"])
def combine(
    given: dict[str, Any],
    task: OptionalTaskArgument = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A .yml recipe or a combined artefact.",
            rich_help_panel=WHAT,
            metavar="PATH",
        ),
    ] = None,
    report: ReportOption = None,
    scale_path: ScalePathOption = None,
    freeze_report: FreezeReportOption = False,
    quiet: QuietOption = False,
) -> None:
    """Combine a pool's prompts for a task with few images, and say whether the pool helped."""
    options.check_place(given)
    from vprompt import flow
    from vprompt.pooling import recipe as recipes

    options.check_places(report=report, scale_path=scale_path)
    if task is not None:
        given["task"] = task
    arguments = given if recipe is None else recipes.read(recipe).arguments(**given)
    if "task" not in arguments or "pool" not in arguments:
        raise VPromptError("combine needs a TASK and a --pool, or a --recipe that names them.")
    with terminal.progress(quiet) as progress:
        options.say_if_not_kept(given, progress)
        outcome = flow.combine(arguments.pop("task"), **arguments, progress=progress)
    terminal.show(outcome, given.get("output"), report, freeze_report, scale_path)
