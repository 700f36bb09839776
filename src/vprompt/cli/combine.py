"""Command line of `vprompt combine`: a pool's prompts for a new task with few images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import options, terminal
from vprompt.cli.options import (
    AbsentOption,
    BatchOption,
    ClipOption,
    DecayOption,
    DeviceOption,
    EpochsOption,
    ExcludeOption,
    ForceOption,
    FormOption,
    FreezeReportOption,
    HeadLrOption,
    HeadOption,
    KeepOption,
    LrOption,
    MoveScaleOption,
    OptionalScreenOption,
    OptionalTaskArgument,
    OptOption,
    OutputOption,
    OverwriteOption,
    PatienceOption,
    PoolModelOption,
    PoolsOption,
    PrecisionOption,
    PrefixOption,
    ProtocolOption,
    QuietOption,
    ReportOption,
    SafeguardOption,
    ScalePathOption,
    SchedOption,
    SeedOption,
    ShotsOption,
    SkipBadOption,
)
from vprompt.core.errors import VPromptError


def combine(
    task: OptionalTaskArgument = None,
    pool: PoolsOption = None,
    method: Annotated[
        str | None,
        typer.Option(help="A method of `vprompt list transfer`. Default: moves."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A .yml recipe, or a combined artefact, in place of TASK and --pool."),
    ] = None,
    model: PoolModelOption = None,
    output: OutputOption = None,
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    shots: ShotsOption = None,
    draw: Annotated[int | None, typer.Option(help="Seed of the draw of shots. Default: 0.")] = None,
    exclude: ExcludeOption = None,
    screen: OptionalScreenOption = None,
    include_self: Annotated[
        bool | None,
        typer.Option("--include-self/--exclude-self", help="Keep sources learned on the target."),
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(help="auto, none, hungarian, placement. Default: as the method asks."),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="auto, none, token_norm, ln. Default: as the method asks.")
    ] = None,
    move_scale: MoveScaleOption = None,
    form: FormOption = None,
    scale_path: ScalePathOption = None,
    safeguard: SafeguardOption = None,
    test: Annotated[bool, typer.Option(help="Measure on the test split at the end.")] = True,
    epochs: EpochsOption = None,
    batch_size: BatchOption = None,
    opt: OptOption = None,
    lr: LrOption = None,
    sched: SchedOption = None,
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
    freeze_report: FreezeReportOption = False,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    skip_bad: SkipBadOption = False,
    allow_absent_classes: AbsentOption = False,
    quiet: QuietOption = False,
) -> None:
    """Combine a pool's prompts for a new task with few images, then tune the sum."""
    from vprompt import flow
    from vprompt.pooling import recipe as recipes
    from vprompt.results import protocols

    options.check_places(report=report, scale_path=scale_path)
    typed: dict[str, Any] = {
        "task": task,
        "pool_folder": pool,
        "method": method,
        "model": model,
        "shots": shots,
        "draw": draw,
        "align": align,
        "scale": scale,
        "safeguard": safeguard,
        "move_scale": options.number_or_word(move_scale),
        "form": form,
        "include_self": include_self,
        "screen": screen,
    }
    given = {key: value for key, value in typed.items() if value is not None}
    arguments = given if recipe is None else recipes.read(recipe).arguments(**given)
    if "task" not in arguments or "pool_folder" not in arguments:
        raise VPromptError("combine needs a TASK and a --pool, or a --recipe that names them.")
    arguments["config"] = options.training(
        options.usual_combining(arguments),
        epochs=epochs,
        batch_size=batch_size,
        opt=opt,
        lr=lr,
        sched=sched,
        clip_grad=clip_grad,
        head_lr=head_lr,
        weight_decay=weight_decay,
        head=head,
        keep=keep,
        patience=patience,
        precision=precision,
        seed=seed,
        prefix_cache=prefix_cache,
    )
    with terminal.progress(quiet) as progress:
        outcome = flow.combine(
            **arguments,
            exclude=tuple(exclude or ()),
            output=output,
            overwrite=overwrite,
            test=test,
            device=device,
            protocol=protocols.find(protocol) if protocol else None,
            force=force,
            skip_bad=skip_bad,
            allow_absent=allow_absent_classes,
            progress=progress,
        )
    terminal.show(outcome, output, report, freeze_report, scale_path)
