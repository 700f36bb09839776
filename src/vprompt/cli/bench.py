"""Command line of `vprompt bench`: run a recipe, and look at what came out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vprompt.cli import figures as cli_figures
from vprompt.cli import packing as cli_packing
from vprompt.cli import terminal
from vprompt.cli.options import DeviceOption, JsonOption, QuietOption
from vprompt.core.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.bench.anchors import Finding

app = typer.Typer(
    help="Compare methods over tasks and seeds: a recipe, many runs, one table.",
    no_args_is_help=True,
)

app.command("figure")(cli_figures.bench_figure)
app.command("report")(cli_figures.bench_report)
app.command("pack")(cli_packing.bench_pack)
app.command("unpack")(cli_packing.bench_unpack)

RecipeArgument = Annotated[Path, typer.Argument(help="A .yaml recipe (docs/benchmarks.md).")]
FolderArgument = Annotated[Path, typer.Argument(help="The --output of `bench run`.")]


@app.command("run")
def bench_run(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option(help="Folder of the results; may hold some already.")],
    data: Annotated[Path | None, typer.Option(help="Folder that holds the image sets.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what would be run.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A method by name; may be repeated.")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="A task; may be repeated.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="A seed; may be repeated.")] = None,
    shard: Annotated[str, typer.Option(help="Run the i-th of n parts, as `2/4`.")] = "1/1",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try runs again that failed before.")
    ] = False,
    executor: Annotated[
        str, typer.Option(help="Where runs happen: local, processes, ray (docs/scale.md).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Runs at once on this machine, for processes and ray.")
    ] = None,
    num_cpus: Annotated[
        int | None, typer.Option(help="Processors of a run, which are also torch's threads.")
    ] = None,
    num_gpus: Annotated[
        float | None, typer.Option(help="GPUs of a run; 0.25 puts four runs on one.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray's head as HOST:PORT; left out, it is started here.")
    ] = None,
    fleet: Annotated[
        str,
        typer.Option(help="Runs of one model that are trained together: a number, auto, off."),
    ] = "auto",
    speed: Annotated[
        float | None,
        typer.Option(help="Images/s of a training step, for --dry-run of a model not at hand."),
    ] = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Run what is not finished of a recipe; stop it at any time and start it again."""
    from vprompt.bench import estimate, executors, runner
    from vprompt.bench import jobs as benches
    from vprompt.bench import recipe as recipes
    from vprompt.bench.store import Store
    from vprompt.core import shelves
    from vprompt.core.forecast import Estimate, Forecast, Part

    if device == "cpu" and num_gpus is None and executor != "local":
        num_gpus = 0.0
    chosen = executors.build(
        executor, workers=workers, num_cpus=num_cpus, num_gpus=num_gpus, address=address
    )
    read, store = recipes.read(recipe), Store(output)
    every = benches.expand(read, data=data, output=output, device=device)
    picked = runner.pick(
        every, methods=only or (), tasks=tasks or (), seeds=seeds or (), shard=_shard(shard)
    )
    finished = store.finished()
    left = [job for job in picked if not store.is_finished(job, finished)]
    terminal.say(f"{read.name}: {len(picked)} runs, {len(picked) - len(left)} finished")
    for sentence in benches.sizes(picked):
        terminal.say(sentence)
    if others := len(finished.keys() - {job.id for job in every}):
        terminal.say(
            f"{others} runs in {output} are of other recipes, or of this one before it changed"
        )
    announced = estimate.announced(read, left, dry_run=dry_run, speed=speed)
    for sentence in (*runner.mixed_precision(picked, store, device), *announced.sentences):
        terminal.say(sentence)
    if dry_run:
        return
    store.start(read, every)
    expected = Estimate("runs", {"runs": Part(announced.seconds, len(left))})
    with terminal.progress(quiet) as shown:
        progress = Forecast(shown, expected)
        report = runner.run(
            picked,
            store,
            retry_failed=retry_failed,
            executor=chosen,
            fleet=fleet,
            progress=progress,
        )
    finished = store.finished()
    if all(store.is_finished(job, finished) for job in every):
        shelves.forget_finished()  # nothing of this recipe is left that could begin from them
    for sentence in report.failed.values():
        terminal.say(f"failed: {sentence}")
    for sentence in report.lost.values():
        terminal.say(f"lost: {sentence}; run the same command again to try it once more")
    if report.waiting:
        terminal.say(
            f"{len(report.waiting)} runs wait for others; run the same command again after them"
        )
    terminal.say(f"{len(report.done)} runs done; `vprompt bench table {output}` shows the results")
    if report.failed or report.lost or report.waiting:
        raise typer.Exit(1)


@app.command("table")
def bench_table(
    output: FolderArgument,
    style: Annotated[str, typer.Option("--format", help="md, csv, latex, html.")] = "md",
    baseline: Annotated[
        str | None, typer.Option(help="The method that others are compared with.")
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(help="Another candidate of the records, such as `combined, untuned`."),
    ] = None,
) -> None:
    """Print the table of the finished runs of a benchmark."""
    from vprompt.bench.formats import render
    from vprompt.bench.store import Store
    from vprompt.bench.summary import summarise

    with terminal.reading_record(output):
        found = summarise(Store(output), baseline=baseline, candidate=candidate)
        text = render(found, style)
    print(terminal.printable(text), end="")


@app.command("compare")
def bench_compare(
    here: Annotated[Path, typer.Argument(help="A run's JSON file, or a --output folder.")],
    there: Annotated[Path, typer.Argument(help="Another of the same kind.")],
    as_json: JsonOption = False,
) -> None:
    """Say field by field why two numbers differ; what explains most comes first."""
    from vprompt.bench.compare import compare

    with terminal.reading_record(Path("One of these")):
        sentences, found = compare(here, there)
    if as_json:
        print(
            json.dumps({"numbers": sentences, "fields": [vars(each) for each in found]}, indent=2)
        )
        return
    for sentence in sentences:
        terminal.say(sentence)
    rows = [[each.reason, each.field, each.here, each.there, str(each.pairs)] for each in found]
    if rows:
        terminal.table(["why", "field", str(here), str(there), "runs"], rows)
    else:
        terminal.say("nothing that is recorded about how they were made differs")


@app.command("check")
def bench_check(
    output: FolderArgument,
    anchors: Annotated[Path, typer.Option(help="Folder of .csv files of published numbers.")],
    as_json: JsonOption = False,
) -> None:
    """Compare results with published numbers, if the two can be compared."""
    from vprompt.bench import anchors as published
    from vprompt.bench.store import Store

    with terminal.reading_record(output):
        found = published.check(Store(output), published.read(anchors))
    verdicts = [each.verdict for each in found]
    if as_json:
        print(json.dumps([each.to_json() for each in found], indent=2))
    else:
        heads = ["verdict", "method", "task", "here", "published", "difference", "allowed"]
        terminal.table([*heads, "source or reason"], [_finding(each) for each in found])
        counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
        terminal.say(
            f"{', '.join(counts) or 'no published number is of a method and task of this table'}"
        )
    if "deviates" in verdicts:
        raise typer.Exit(1)


@app.command("metrics")
def bench_metrics(
    results: Annotated[
        Path, typer.Argument(help="Folder of .json files that hold `records` of scored sources.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Judge metrics by the accuracy after tuning: rank correlations, regret and intervals."""
    from vprompt.results import judging
    from vprompt.results.records import Records

    records = [record for _, each in Records(results).find() for record in _records(each)]
    if not records:
        raise VPromptError(
            f"{results} holds no scored sources. Each .json file there has the key `records`, a "
            "list of {target, source, scores, accuracy_after_tuning, seconds}."
        )
    judgement = judging.judge(records)
    if as_json:
        print(json.dumps(judgement.to_json(), indent=2))
    else:
        print(terminal.printable(judging.markdown(judgement)), end="")


def _records(found: object) -> list[dict[str, Any]]:
    """Return the scored sources of a result file; other files in the folder hold none."""
    records = found.get("records") if isinstance(found, dict) else None
    return records if isinstance(records, list) else []


def _finding(found: "Finding") -> list[str]:
    anchor = found.anchor
    numbers = [f"{found.result.mean:.1f}", f"{anchor.accuracy:.1f}", f"{found.difference:+.1f}"]
    names = [found.verdict, anchor.method, anchor.task]
    return [
        *names,
        *numbers,
        f"{anchor.tolerance:.1f}",
        found.why or f"{anchor.file}, {anchor.detail}",
    ]


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise VPromptError(f"--shard reads `i/n`, such as 2/4, but got {text!r}.")
    return int(part), int(parts)
