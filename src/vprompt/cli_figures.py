"""Command line of `vprompt bench figure` and `bench report`: pictures of what came out."""

from pathlib import Path
from typing import Annotated

import typer

from vprompt import terminal

KindArgument = Annotated[
    str, typer.Argument(help="cosines, weights, tsne, lambda, ablation or pareto.")
]
FolderArgument = Annotated[Path, typer.Argument(help="The --output of `bench run`.")]


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
) -> None:
    """Draw a figure of a benchmark, of whatever is finished, as .svg or .png."""
    from vprompt.bench import figures
    from vprompt.bench.store import Store
    from vprompt.report.canvas import check_suffix

    check_suffix(output)
    drawing = figures.draw(
        kind,
        Store(folder),
        method=method,
        task=task,
        seed=seed,
        baseline=baseline,
        candidate=candidate,
        cost=cost,
    )
    drawing.save(output)
    print(terminal.printable(f"{drawing.description}: {output}"))
