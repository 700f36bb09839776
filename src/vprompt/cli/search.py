"""Command line of `vprompt search`: find the length that each block needs, then learn with it."""

from typing import Annotated

import typer

from vprompt.cli import options, terminal
from vprompt.cli.options import (
    DeviceOption,
    DrawOption,
    EpochsOption,
    FreezeReportOption,
    LrOption,
    ModelOption,
    OutputOption,
    OverwriteOption,
    PatienceOption,
    ProtocolOption,
    QuietOption,
    ReportOption,
    SeedOption,
    ShotsOption,
    SkipBadOption,
    TaskArgument,
)


def search(
    task: TaskArgument,
    model: ModelOption = "demo",
    method: Annotated[str, typer.Option(help="A search, with its settings.")] = "dpl",
    towers: Annotated[
        str | None,
        typer.Option(help="Of a CLIP: image, text or both. Classes are then read, by clip_dpl."),
    ] = None,
    max_prompts: Annotated[
        int | None, typer.Option(help="Bound on the tokens of all blocks together.")
    ] = None,
    max_params: Annotated[
        int | None, typer.Option(help="Bound on the numbers in those tokens, instead.")
    ] = None,
    alpha_data: Annotated[
        str, typer.Option(help="val, half (of the training images), or auto.")
    ] = "auto",
    search_epochs: Annotated[int | None, typer.Option(help="Default: as the method asks.")] = None,
    epochs: EpochsOption = None,
    lr: LrOption = None,
    patience: PatienceOption = None,
    seed: SeedOption = None,
    shots: ShotsOption = None,
    draw: DrawOption = 0,
    output: OutputOption = None,
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    test: Annotated[bool, typer.Option(help="Measure on the test split at the end.")] = True,
    protocol: ProtocolOption = None,
    freeze_report: FreezeReportOption = False,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search how many prompt tokens each block needs, then learn a prompt of those lengths."""
    from vprompt import searching, stages
    from vprompt.results import protocols

    options.check_places(report=report)
    if towers is not None and method == "dpl":
        method = "clip_dpl"
    short = {"max_prompts": max_prompts, "max_params": max_params, "towers": towers}
    method = options.with_settings(method, short)
    defaults = stages.training_defaults(method)
    with terminal.progress(quiet) as progress:
        outcome = searching.search(
            task,
            model=model,
            method=method,
            config=options.typed(epochs=epochs, lr=lr, patience=patience, seed=seed),
            search_config=options.training(defaults, epochs=search_epochs, lr=lr, seed=seed),
            shots=shots,
            draw=draw,
            alpha_data=alpha_data,
            output=output,
            overwrite=overwrite,
            test=test,
            device=device,
            protocol=protocols.find(protocol) if protocol else None,
            skip_bad=skip_bad,
            progress=progress,
        )
    terminal.show(outcome, output, report, freeze_report)
