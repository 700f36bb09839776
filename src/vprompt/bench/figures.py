"""Figures: what the records of a benchmark show, gathered as plain numbers and drawn.

Each kind is a function `store, *, options -> Drawing`; it raises VPromptError with a sentence where
the records do not hold what it draws.
"""

import inspect
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vprompt.bench import embedding, suite, sweep
from vprompt.bench.store import Store
from vprompt.bench.summary import Row, Run, differences, summarise
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.report import comparisons, maps, matrices, pareto, plots
from vprompt.report.canvas import Drawing
from vprompt.report.wording import signed

MOST_MAPS = 4  # as many methods as the paper compares


def draw(kind: str, store: Store, **options: Any) -> Drawing:
    """Draw a figure of one of `KINDS`; options that are None are as if not given."""
    if kind not in KINDS:
        raise VPromptError(f"No figure called {kind!r}.{registry.suggest(kind, KINDS)}")
    given = {key: value for key, value in options.items() if value not in (None, [], ())}
    asked = embedding.embed if kind == "tsne" else KINDS[kind]
    known = [*inspect.signature(asked).parameters][1:]
    for key in given:
        if key not in known:
            takes = ", ".join(f"--{name}" for name in known) or "no options"
            raise VPromptError(f"The figure {kind} takes no --{key}. It takes: {takes}.")
    return KINDS[kind](store, **given)


def cosines(
    store: Store, *, method: Sequence[str] = (), task: str | None = None, seed: int | None = None
) -> Drawing:
    """Draw how far the sources' gradients on one target agree (the paper's Figure 3).

    Of the runs that were asked for it is the first whose sources all have a gradient, or the first.
    """
    found = None
    for cell, record in store.select(methods=method or None, task=task, seed=seed):
        matrix = (record.get("transfer") or {}).get("gradient_cosines")
        if matrix:
            found = found or (cell, record)
            if all(row[index] for index, row in enumerate(matrix)):
                found = (cell, record)
                break
    if found is None:
        raise VPromptError(
            f"No finished run in {store.folder} that was asked for holds cosines of gradients. A "
            "method records them if it asks for gradients, such as hgprompt."
        )
    cell, record = found
    names = [suite.label_of(source["name"]) for source in record["transfer"]["sources"]]
    drawn = plots.cosines(names, record["transfer"]["gradient_cosines"])
    about = f"{drawn.description} on {cell.task}, {cell.method}, seed {cell.seed}"
    return Drawing(drawn.name, drawn.figure, about)


def weights(store: Store, *, method: Sequence[str] = ()) -> Drawing:
    """Draw the weights of transfer methods, target by source, means over seeds (Figure 4).

    Without `method` these are the first four that combine and do not weigh all sources alike.
    """
    recipe = store.recipe()
    chosen = method or [
        each.name
        for each in recipe.methods
        if each.combine is not None and registry.parse(each.spec(0)).name != "uniform"
    ]
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell, record in store.select(methods=chosen):
        for source in (record.get("transfer") or {}).get("sources", []):
            row = cells.setdefault((cell.method, cell.task), {})
            row.setdefault(source["name"], []).append(source["weight"])
    drawn = [name for name in chosen if any(name == key[0] for key in cells)]
    if not drawn:
        raise VPromptError(
            f"No finished run in {store.folder} that was asked for combines sources, so there are "
            "no weights to draw."
        )
    drawn = drawn if method else drawn[:MOST_MAPS]
    groups = {task.name: task.group for task in recipe.tasks}
    shown = {key: row for key, row in cells.items() if key[0] in drawn}
    targets = [t for t in suite.ordered(groups, groups) if any(t == key[1] for key in shown)]
    sources = suite.ordered({name for row in shown.values() for name in row}, groups)
    matrix_of = []
    for name in drawn:
        rows = [shown.get((name, target), {}) for target in targets]
        matrix_of.append((name, [[_mean(row.get(source)) for source in sources] for row in rows]))
    labels = [suite.label_of(source) for source in sources]
    return matrices.weight_maps(matrix_of, [suite.label_of(t) for t in targets], labels)


def ablation(store: Store, *, baseline: str | None = None, candidate: str | None = None) -> Drawing:
    """Draw every method's gain over the baseline with its interval over tasks (Table 2)."""
    summary = summarise(store, baseline=baseline, candidate=candidate)
    if summary.baseline is None:
        raise VPromptError(
            f"The recipe of {store.folder} names no baseline to draw gains over. Name a method: "
            "--baseline NAME."
        )
    accuracy = {(run["method"], run["task"], run["seed"]): run["accuracy"] for run in summary.runs}
    rows = [_gain(row, summary.baseline, accuracy) for row in summary.rows]
    rows = [row for row in rows if row.mean is not None or row.name == summary.baseline]
    if all(row.mean is None for row in rows):
        raise VPromptError(
            f"No method in {store.folder} has a finished run of a task and seed that the baseline "
            f"{summary.baseline!r} has finished too."
        )
    return comparisons.gains(rows, summary.baseline)


def _gain(row: Row, baseline: str, accuracy: Mapping[Run, float]) -> comparisons.Gain:
    by_task: dict[str, list[float]] = {}
    if row.method != baseline:
        for (task, _), value in differences(accuracy, row.method, baseline).items():
            by_task.setdefault(task, []).append(value)
    mean = None if row.mean is None else row.mean.mean
    if row.over_tasks is None:
        return comparisons.Gain(row.method, None, accuracy=mean, group=row.group)
    tasks = [statistics.fmean(values) for values in by_task.values()]
    found = row.over_tasks
    return comparisons.Gain(row.method, found.mean, found.low, found.high, tasks, mean, row.group)


def over_cost(store: Store, *, cost: str = "seconds", candidate: str | None = None) -> Drawing:
    """Draw mean accuracy over mean `seconds` of a run or trained `parameters`, and the front."""
    if cost not in pareto.COSTS:
        raise VPromptError(f"A cost is {' or '.join(pareto.COSTS)}, but got {cost!r}.")
    points, seeds = [], set()
    for row in summarise(store, candidate=candidate).rows:
        if row.mean is not None:
            seeds.add(row.mean.n)
            sizes = {"seconds": row.seconds, "parameters": row.parameters + row.head_parameters}
            points.append(
                pareto.Point(row.method, max(sizes[cost], 0.01), row.mean.mean, row.mean.std)
            )
    if not points:
        raise VPromptError(
            f"No method in {store.folder} has finished a seed on every task yet, so there is no "
            "mean accuracy to draw."
        )
    drawn = pareto.pareto(points, cost)
    if len(seeds) == 1:
        return drawn
    about = f"{drawn.description}; means are over {min(seeds)} to {max(seeds)} seeds"
    return Drawing(drawn.name, drawn.figure, about)


def by_lambda(store: Store, *, method: Sequence[str] = (), candidate: str | None = None) -> Drawing:
    """Draw the accuracy by HGPrompt's lambda on each target (Figure 6)."""
    found = sweep.curves(store, method=method, candidate=candidate)
    return comparisons.sweep(found, "lambda", limit="uniform weights")


def tsne(store: Store, **options: Any) -> Drawing:
    """Draw a run's training images under single sources and under their sum (Figure 5).

    `options` are those of `embedding.embed`. The images are needed: `data`.
    """
    found = embedding.embed(store, **options)
    panels = [
        maps.Panel(
            suite.label_of(name),
            f"H-score {signed(embedding.hscore(features, found.labels), 2)}",
            embedding.plane(features),
        )
        for name, features in found.features.items()
    ]
    drawn = maps.embedding(panels, found.labels, found.classes, method="t-SNE")
    about = f"{drawn.description}; {found.cell.task}, {found.cell.method}, seed {found.cell.seed}"
    return Drawing(drawn.name, drawn.figure, about)


KINDS: dict[str, Callable[..., Drawing]] = {
    "cosines": cosines,
    "weights": weights,
    "tsne": tsne,
    "lambda": by_lambda,
    "ablation": ablation,
    "pareto": over_cost,
}


def _mean(values: Sequence[float] | None) -> float | None:
    return statistics.fmean(values) if values else None
