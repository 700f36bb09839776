"""Command line: parse, call one function, print; torch is imported inside the commands."""

import json
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vprompt.cli import bench as cli_bench
from vprompt.cli import cache as cli_cache
from vprompt.cli import combine as cli_combine
from vprompt.cli import commands, options, terminal
from vprompt.cli import data as cli_data
from vprompt.cli import exchange as cli_exchange
from vprompt.cli import learn as cli_learn
from vprompt.cli import lengths as cli_lengths
from vprompt.cli import look as cli_look
from vprompt.cli import place as cli_place
from vprompt.cli import pool as cli_pool
from vprompt.cli import report as cli_report
from vprompt.cli import score as cli_score
from vprompt.cli import search as cli_search
from vprompt.cli import share as cli_share
from vprompt.cli import use as cli_use
from vprompt.cli import web as cli_web
from vprompt.cli.options import JsonOption
from vprompt.core import clock, threads
from vprompt.core.errors import VPromptError


class Verbs(TyperGroup):
    """The commands; options of an earlier release are understood, with a note."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the words name, and give it the rest in the words of today."""
        return super().resolve_command(ctx, options.of_today(args))


app = typer.Typer(
    cls=Verbs,
    help="Learn, combine and share visual prompts for frozen vision transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from vprompt import __version__

        terminal.say(f"vprompt {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="The version."),
    ] = False,
) -> None:
    """Learn, combine and share visual prompts for frozen vision transformers."""
    del version


_TRAINING = commands.not_here()
_VERBS, _LOOK = "The main line", "Look at what came out"
_EXCHANGE, _KEEP = "In, out and on", "Pools, data, benchmarks"
app.command(epilog=_TRAINING, rich_help_panel=_VERBS)(cli_learn.learn)
app.command(rich_help_panel=_VERBS)(cli_score.score)
app.command(epilog=_TRAINING, rich_help_panel=_VERBS)(cli_combine.combine)
app.command(epilog=_TRAINING, rich_help_panel=_VERBS)(cli_search.search)
app.command(rich_help_panel=_VERBS)(cli_use.predict)
app.command(rich_help_panel=_VERBS)(cli_use.evaluate)
app.command(rich_help_panel=_LOOK)(cli_report.report)
app.command(rich_help_panel=_LOOK)(cli_look.attention)
app.command(rich_help_panel=_LOOK)(cli_place.placement)
app.command(rich_help_panel=_LOOK)(cli_lengths.lengths)
app.command("import", rich_help_panel=_EXCHANGE)(cli_exchange.import_prompt)
app.command(rich_help_panel=_EXCHANGE)(cli_exchange.export)
app.command(rich_help_panel=_EXCHANGE)(cli_web.serve)
app.command("ui", rich_help_panel=_EXCHANGE)(cli_web.page)
app.add_typer(cli_share.app, name="share", rich_help_panel=_EXCHANGE)
app.add_typer(cli_pool.app, name="pool", rich_help_panel=_KEEP)
app.add_typer(cli_data.app, name="data", rich_help_panel=_KEEP)
app.add_typer(cli_bench.app, name="bench", rich_help_panel=_KEEP)
app.add_typer(cli_cache.app, name="cache", rich_help_panel=_KEEP)


@app.command("list", rich_help_panel=_KEEP)
def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="One kind: adapters, protocols, ...")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the plug-ins with their settings and papers, and the named protocols."""
    from vprompt.core import registry
    from vprompt.results import protocols

    kinds = [kind] if kind else [*registry.VERBS, "protocols"]
    found: list[dict[str, Any]] = []
    for each in kinds:
        found += protocols.entries() if each == "protocols" else registry.entries(each)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for entry in found:
        terminal.say(f"{entry['kind']}  {entry['name']}{entry['settings']}")
        terminal.say(f"    {entry['summary']}")
        if entry["reference"]:
            terminal.say(f"    Reference: {entry['reference']}")


def main() -> None:
    """Run the command line; a mistake of the caller is one sentence and exit code 1."""
    clock.begin()
    threads.wait_quietly()  # before any command loads torch
    terminal.write_any_text()
    process = os.environ.get("RANK", "0") if _several() else "0"
    name = "vprompt" if process == "0" else f"vprompt (process {process})"
    try:
        if _several() and sys.argv[1:2] != ["learn"]:
            raise VPromptError(
                "torchrun shares out the training of `vprompt learn` alone. For many runs at once: "
                "`vprompt bench run --executor processes`."
            )
        with terminal.running(name):
            terminal.tidy_cache()
            app(args=[options.at_home(word) for word in sys.argv[1:]])
    except VPromptError as error:
        print(f"{name}: {terminal.printable(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None:
            raise
        # What the system says of a place that a person named, or of the disk.
        told = f"{name}: {error.filename}: {error.strerror}."
        print(terminal.printable(told), file=sys.stderr)
        raise SystemExit(1) from None


def _several() -> bool:
    """Say whether torchrun started this process and others; without importing torch."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"
