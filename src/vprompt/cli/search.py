"""Command line of `vprompt search`: find the length that each block needs, then learn with it."""

from typing import Annotated, Any

import typer

from vprompt.cli import commands, options, terminal
from vprompt.cli.options import FreezeReportOption, QuietOption, ReportOption, TaskArgument
from vprompt.core.settings import TRAINING, WHAT
from vprompt.verbs import SearchSettings

BOTH = ("lr", "seed", "precision", "prefix_cache")  # what is said of training is meant for both


@commands.of_verb(SearchSettings, usual={})
def search(
    given: dict[str, Any],
    task: TaskArgument,
    towers: Annotated[
        str | None,
        typer.Option(
            help="For a CLIP: image, text or both. The method is then clip_dpl.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    max_prompts: Annotated[
        int | None,
        typer.Option(help="Most tokens of all blocks together.", rich_help_panel=WHAT),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option(help="Most numbers in those tokens, instead.", rich_help_panel=WHAT),
    ] = None,
    search_epochs: Annotated[
        int | None,
        typer.Option(
            help="Epochs of the search itself. Default: the method's.", rich_help_panel=TRAINING
        ),
    ] = None,
    report: ReportOption = None,
    freeze_report: FreezeReportOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search how many prompt tokens each block needs, then learn a prompt of those lengths."""
    options.check_place(given)
    from vprompt import searching

    options.check_places(report=report)
    usual = "dpl" if towers is None else "clip_dpl"
    method = given.get("method", usual)
    short = {"max_prompts": max_prompts, "max_params": max_params, "towers": towers}
    given["method"] = options.with_settings(usual if method == "dpl" else method, short)
    own = {} if search_epochs is None else {"epochs": search_epochs}
    config = given.get("config", {})
    given["search_config"] = own | {name: config[name] for name in BOTH if name in config}
    with terminal.progress(quiet) as progress:
        options.say_if_not_kept(given, progress)
        outcome = searching.search(task, **given, progress=progress)
    terminal.show(outcome, given.get("output"), report, freeze_report)
