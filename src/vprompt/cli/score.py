"""Command line of `vprompt score`: rank a pool for a task."""

from typing import Any

from vprompt.cli import commands, terminal
from vprompt.cli.options import JsonOption, QuietOption, TaskArgument
from vprompt.verbs import ScoreSettings


@commands.of_verb(ScoreSettings)
def score(
    given: dict[str, Any],
    task: TaskArgument,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rank a pool for a task. Nothing is trained, except for the metric prompt_cosine."""
    from vprompt import flow
    from vprompt.core import registry

    metric = given.get("metric", "hscore")
    given["metric"] = registry.names("metrics") if metric == "all" else metric
    with terminal.progress(quiet) as progress:
        ranked = flow.score(task, **given, progress=progress)
    terminal.scores(ranked, metric, as_json)
