"""Command line: parse, call one function, print; torch is imported inside the commands."""

import json
import os
import sys
from typing import Annotated, Any

import typer

from vprompt.cli import bench as cli_bench
from vprompt.cli import cache as cli_cache
from vprompt.cli import combine as cli_combine
from vprompt.cli import data as cli_data
from vprompt.cli import lengths as cli_lengths
from vprompt.cli import options, terminal
from vprompt.cli import place as cli_place
from vprompt.cli import pool as cli_pool
from vprompt.cli import report as cli_report
from vprompt.cli import search as cli_search
from vprompt.cli import share as cli_share
from vprompt.cli import use as cli_use
from vprompt.cli.options import (
    AbsentOption,
    AugmentOption,
    BatchOption,
    ClipOption,
    DecayOption,
    DeviceOption,
    DrawOption,
    EpochsOption,
    ExcludeOption,
    ForceOption,
    FreezeReportOption,
    HeadLrOption,
    HeadOption,
    JsonOption,
    KeepOption,
    LrOption,
    ModelOption,
    OptOption,
    OutputOption,
    OverwriteOption,
    PatienceOption,
    PoolModelOption,
    PoolRequired,
    PrecisionOption,
    PrefixOption,
    ProtocolOption,
    QuietOption,
    ReportOption,
    SchedOption,
    ScreenOption,
    SeedOption,
    ShotsOption,
    SizeOption,
    SkipBadOption,
    SourceDataOption,
    TaskArgument,
)
from vprompt.core import threads
from vprompt.core.errors import VPromptError

app = typer.Typer(
    help="Learn, combine and share visual prompts for frozen vision transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_pool.app, name="pool")
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_share.app, name="share")
app.add_typer(cli_cache.app, name="cache")
app.command("placement")(cli_place.placement)
app.command("lengths")(cli_lengths.lengths)
app.command("report")(cli_report.report)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from vprompt import __version__

        print(f"vprompt {__version__}")
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


@app.command()
def learn(
    task: TaskArgument,
    model: ModelOption = "demo",
    method: Annotated[str, typer.Option(help="A method of `vprompt list adapters`.")] = "vpt",
    output: OutputOption = None,
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    prompt_length: Annotated[
        int | None, typer.Option(help="Short for num_virtual_tokens of the method.")
    ] = None,
    deep: Annotated[
        bool | None, typer.Option("--deep/--shallow", help="Tokens in every block, or the first.")
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(help="For a CLIP: a sentence with {}, imagenet, simple, or a file of them."),
    ] = None,
    shots: ShotsOption = None,
    draw: DrawOption = 0,
    train_on: Annotated[
        str, typer.Option(help="train, or trainval: nothing left to choose by.")
    ] = "train",
    grid: Annotated[
        list[str] | None,
        typer.Option(help="Values to choose from on validation, as `lr=0.01,0.03`; repeatable."),
    ] = None,
    halving: Annotated[
        bool, typer.Option("--halving", help="Drop points of the grid that lie behind on the way.")
    ] = False,
    fleet: Annotated[
        str, typer.Option(help="Points of the grid that advance together: a number, auto, off.")
    ] = "auto",
    img_size: SizeOption = None,
    test: Annotated[bool, typer.Option(help="Measure on the test split at the end.")] = True,
    epochs: EpochsOption = None,
    batch_size: BatchOption = None,
    opt: OptOption = None,
    lr: LrOption = None,
    sched: SchedOption = None,
    augment: AugmentOption = None,
    clip_grad: ClipOption = None,
    head_lr: HeadLrOption = None,
    weight_decay: DecayOption = None,
    head: HeadOption = None,
    keep: KeepOption = None,
    patience: PatienceOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    prefix_cache: PrefixOption = None,
    protocol: ProtocolOption = None,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
    allow_absent_classes: AbsentOption = False,
    freeze_report: FreezeReportOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn a prompt for a task: a small file that adapts a frozen backbone."""
    from vprompt import flow, stages
    from vprompt.core import distributed
    from vprompt.data.preprocessing import read_size
    from vprompt.results import protocols

    options.check_places(report=report)
    extra = {"num_virtual_tokens": prompt_length, "deep": deep, "templates": templates}
    method = options.with_settings(method, extra)
    with distributed.joined(), terminal.progress(quiet or not distributed.is_first()) as progress:
        first = distributed.is_first()
        outcome = flow.learn(
            task,
            model=model,
            method=method,
            config=options.training(
                stages.training_defaults(method),
                epochs=epochs,
                batch_size=batch_size,
                opt=opt,
                lr=lr,
                sched=sched,
                augment=augment,
                clip_grad=clip_grad,
                head_lr=head_lr,
                weight_decay=weight_decay,
                head=head,
                keep=keep,
                patience=patience,
                precision=precision,
                seed=seed,
                prefix_cache=prefix_cache,
            ),
            grid=options.read_grid(grid or []),
            halving=halving,
            fleet=fleet,
            shots=shots,
            draw=draw,
            train_on=train_on,
            image_size=None if img_size is None else read_size(img_size),
            output=output,
            overwrite=overwrite,
            test=test,
            device=device,
            protocol=protocols.find(protocol) if protocol else None,
            skip_bad=skip_bad,
            allow_absent=allow_absent_classes,
            progress=progress,
        )
    if first:
        terminal.show(outcome, output, report, freeze_report)


app.command()(cli_combine.combine)


@app.command()
def score(
    task: TaskArgument,
    pool: PoolRequired,
    metric: Annotated[
        str, typer.Option(help="A metric of `vprompt list metrics`, or all: scores and ranks.")
    ] = "hscore",
    model: PoolModelOption = None,
    shots: ShotsOption = None,
    draw: DrawOption = 0,
    exclude: ExcludeOption = None,
    screen: ScreenOption = "auto",
    source_data: SourceDataOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    skip_bad: SkipBadOption = False,
    allow_absent_classes: AbsentOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rank a pool for a task; trains nothing but the prompt that prompt_cosine compares with."""
    from vprompt import flow
    from vprompt.core import registry

    chosen = registry.names("metrics") if metric == "all" else metric
    with terminal.progress(quiet) as progress:
        ranked = flow.score(
            task,
            pool_folder=pool,
            metric=chosen,
            model=model,
            shots=shots,
            draw=draw,
            exclude=tuple(exclude or ()),
            screen=screen,
            source_data=source_data,
            device=device,
            force=force,
            skip_bad=skip_bad,
            allow_absent=allow_absent_classes,
            progress=progress,
        )
    terminal.scores(ranked, metric, as_json)


app.command()(cli_search.search)
app.command()(cli_use.predict)
app.command()(cli_use.evaluate)


@app.command("list")
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
        print(f"{entry['kind']}  {entry['name']}{entry['settings']}")
        print(f"    {entry['summary']}")
        if entry["reference"]:
            print(f"    Reference: {entry['reference']}")


def main() -> None:
    """Run the command line; a mistake of the caller is one sentence and exit code 1."""
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


def _several() -> bool:
    """Say whether torchrun started this process and others; without importing torch."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"
