"""Command line of `vprompt bench figure` and `bench report`: pictures of what came out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import options, terminal
from vprompt.cli.options import DeviceOption, QuietOption

KindArgument = Annotated[
    str, typer.Argument(help="cosines, weights, tsne, lambda, ablation or pareto.")
]
FolderArgument = Annotated[Path, typer.Argument(help="The --output of `bench run`.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Folder that holds the image sets, for tsne.")
]


def bench_figure(
    kind: KindArgument,
    folder: FolderArgument,
    output: Annotated[Path, typer.Option(help="The picture, .svg or .png.")],
    method: Annotated[
        list[str] | None, typer.Option(help="A method by name; may be repeated.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A target, for cosines and tsne.")] = None,
    seed: Annotated[int | None, typer.Option(help="A seed, for cosines and tsne.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What ablation compares with, if not the recipe's.")
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(help="Another candidate of the records, such as `combined, untuned`."),
    ] = None,
    cost: Annotated[str | None, typer.Option(help="seconds or parameters, for pareto.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="A source to show, for tsne; may be repeated.")
    ] = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Draw a figure of the finished runs of a benchmark, as .svg or .png."""
    from vprompt.bench import figures
    from vprompt.bench.store import Store
    from vprompt.report.canvas import check_suffix

    check_suffix(output)
    options.check_places(output=output)
    given: dict[str, Any] = {
        "method": method,
        "task": task,
        "seed": seed,
        "source": source,
        "data": data,
    }
    given |= {"baseline": baseline, "candidate": candidate, "cost": cost}
    with terminal.progress(quiet) as progress:
        if kind == "tsne":
            given |= {"device": device, "progress": progress}
        with terminal.reading_record(folder):
            drawing = figures.draw(kind, Store(folder), **given)
    drawing.save(output)
    terminal.say(f"{drawing.description}: {output}")


def bench_report(
    folders: Annotated[list[Path], typer.Argument(help="One or several --output of `bench run`.")],
    output: Annotated[Path, typer.Option(help="The page, .html.")],
    baseline: Annotated[
        str | None, typer.Option(help="The method that others are compared with.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds the image sets, for maps of features.")
    ] = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Put the tables and figures of one or several benchmarks on one self-contained page."""
    from vprompt.bench.page import write_report

    options.check_places(output=output)
    place = folders[0] if len(folders) == 1 else Path("One of these")
    with terminal.progress(quiet) as progress, terminal.reading_record(place):
        left_out = write_report(
            folders, output, baseline=baseline, data=data, device=device, progress=progress
        )
    for sentence in left_out:
        terminal.say(f"not drawn: {sentence}")
    terminal.say(f"report: {output}")
