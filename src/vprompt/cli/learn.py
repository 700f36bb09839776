"""Command line of `vprompt learn`: a prompt for a task, on one process or, by torchrun, several."""

from typing import Annotated, Any

import typer

from vprompt.cli import commands, options, terminal
from vprompt.cli.options import FreezeReportOption, QuietOption, ReportOption, TaskArgument
from vprompt.core.settings import TRAINING, WHAT
from vprompt.verbs import LearnSettings


@commands.of_verb(LearnSettings, usual={})
def learn(
    given: dict[str, Any],
    task: TaskArgument,
    prompt_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens per block: num_virtual_tokens of the method.", rich_help_panel=WHAT
        ),
    ] = None,
    deep: Annotated[
        bool | None,
        typer.Option(
            "--deep/--shallow",
            help="Tokens in every block, or only in the first.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            help="For a CLIP: a sentence with {}, imagenet, simple, or a file.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="Try several values, choose on validation: `lr=0.01,0.03`; repeatable.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    report: ReportOption = None,
    freeze_report: FreezeReportOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn a prompt for a task: a small file that adapts a frozen backbone."""
    options.check_place(given)
    from vprompt import flow
    from vprompt.core import distributed

    options.check_places(report=report)
    extra = {"num_virtual_tokens": prompt_length, "deep": deep, "templates": templates}
    given["method"] = options.with_settings(given.get("method", options.LEARNING), extra)
    with distributed.joined(), terminal.progress(quiet or not distributed.is_first()) as progress:
        first = distributed.is_first()
        options.say_if_not_kept(given, progress)
        outcome = flow.learn(task, **given, grid=options.read_grid(grid or []), progress=progress)
    if first:
        terminal.show(outcome, given.get("output"), report, freeze_report)
