"""Summary: the records of a benchmark become numbers: means, deviations, ranks and differences."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata, t

from vprompt.bench import suite
from vprompt.bench.runner import result
from vprompt.bench.store import Store
from vprompt.errors import VPromptError


@dataclass(frozen=True)
class Spread:
    """A mean over `n` values with their sample standard deviation (ddof 1), NaN for one value."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise values."""
        std = statistics.stdev(values) if len(values) > 1 else float("nan")
        return cls(statistics.fmean(values), std, len(values))


@dataclass(frozen=True)
class Interval:
    """A mean difference over `n` pairs with its 95 % t-interval, NaN for one pair."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Interval":
        """Summarise differences, taken as independent."""
        spread = Spread.of(differences)
        n = spread.n
        half = float(t.ppf(0.975, n - 1)) * spread.std / n**0.5 if n > 1 else float("nan")
        return cls(spread.mean, spread.mean - half, spread.mean + half, n)


@dataclass(frozen=True)
class Row:
    """A method's line: cells by task, means, rank, differences and cost; accuracy in %."""

    method: str
    cells: dict[str, Spread]
    groups: dict[str, Spread]
    mean: Spread | None
    mean_of_groups: Spread | None
    rank: float | None
    over_runs: Interval | None
    over_tasks: Interval | None
    parameters: Spread
    head: Spread
    seconds: float


@dataclass(frozen=True)
class Summary:
    """A whole table: rows in the recipe's order, columns in VTAB's, the runs behind them."""

    title: str
    tasks: list[str]
    groups: dict[str, str | None]
    rows: list[Row]
    baseline: str | None
    runs: list[dict[str, Any]]
    missing: int
    notes: list[str] = field(default_factory=list)

    @property
    def group_names(self) -> list[str]:
        """The groups that occur, in VTAB's order."""
        return list(dict.fromkeys(g for g in map(self.groups.get, self.tasks) if g is not None))


def summarise(
    store: Store, *, baseline: str | None = None, candidate: str | None = None
) -> Summary:
    """Read a benchmark's folder; `baseline` is the method that the others are compared with.

    `candidate` takes another candidate of the records than what was learned or tuned, such as
    `combined, untuned`; runs without it are left out.
    """
    recipe = store.recipe()
    baseline = baseline or recipe.baseline
    names = [method.name for method in recipe.methods]
    if baseline is not None and baseline not in names:
        raise VPromptError(f"No method is called {baseline!r}. There are: {', '.join(names)}.")
    records, missing = _records(store)
    runs = [run for record in records if (run := _run(record, candidate)) is not None]
    if not runs:
        raise VPromptError(f"{store.folder} holds no finished run to show.")
    groups = {task.name: task.group or suite.group_of(task.name) for task in recipe.tasks}
    tasks = suite.ordered(groups, groups)
    accuracy = {(run["method"], run["task"], run["seed"]): run["accuracy"] for run in runs}
    present = [name for name in names if any(run["method"] == name for run in runs)]
    ranks = average_ranks(accuracy, present)
    rows = [
        _row(
            name,
            [run for run in runs if run["method"] == name],
            tasks,
            groups,
            ranks,
            accuracy,
            baseline,
        )
        for name in present
    ]
    title = recipe.name + (f", {candidate}" if candidate else "")
    return Summary(
        title, tasks, groups, rows, baseline, runs, missing, _notes(records, recipe.protocol)
    )


def average_ranks(
    accuracy: Mapping[tuple[str, str, int], float], methods: Sequence[str]
) -> dict[str, float]:
    """Return each method's mean rank, 1 the best, over the runs (task, seed) that all share.

    Ties get the mean of their ranks. Empty where no run is shared by all.
    """
    pairs = {key[1:] for key in accuracy}
    shared = [p for p in sorted(pairs) if all((name, *p) in accuracy for name in methods)]
    if not shared:
        return {}
    table = np.array([[accuracy[(name, *pair)] for name in methods] for pair in shared])
    ranks = rankdata(-table.round(10), axis=1).mean(0)
    return dict(zip(methods, ranks.tolist(), strict=True))


def differences(
    accuracy: Mapping[tuple[str, str, int], float], method: str, baseline: str
) -> dict[tuple[str, int], float]:
    """Return the paired differences of a method to the baseline, by task and seed."""
    return {
        (task, seed): value - accuracy[(baseline, task, seed)]
        for (name, task, seed), value in accuracy.items()
        if name == method and (baseline, task, seed) in accuracy
    }


def _records(store: Store) -> tuple[list[dict[str, Any]], int]:
    finished, found, missing = store.finished(), [], 0
    for cell in store.cells():
        if cell.id not in finished:
            missing += 1
            continue
        cell_facts = {"method": cell.method, "task": cell.task, "seed": cell.seed}
        found.append({**store.read(cell.id), "cell": cell_facts})
    return found, missing


def _run(record: dict[str, Any], candidate: str | None) -> dict[str, Any] | None:
    measured = result(record) if candidate is None else record["test"].get(candidate)
    if measured is None:
        return None
    parameters = dict(record["tuning"]["parameters"])
    head = parameters.pop("head")
    return {
        **record["cell"],
        "accuracy": 100 * measured["acc1"],
        "parameters": float(sum(parameters.values())),
        "head_parameters": float(head),
        "seconds": record["total_seconds"],
        "id": record["id"],
    }


def _row(
    name: str,
    runs: Sequence[dict[str, Any]],
    tasks: Sequence[str],
    groups: Mapping[str, str | None],
    ranks: Mapping[str, float],
    accuracy: Mapping[tuple[str, str, int], float],
    baseline: str | None,
) -> Row:
    by_task = {
        task: {run["seed"]: run["accuracy"] for run in runs if run["task"] == task}
        for task in tasks
    }
    cells = {task: Spread.of(list(values.values())) for task, values in by_task.items() if values}
    members: dict[str, list[str]] = {}
    for task in tasks:
        if groups[task] is not None:
            members.setdefault(str(groups[task]), []).append(task)
    group_means = {
        group: spread for group, own in members.items() if (spread := _mean_over(by_task, [own]))
    }
    grouped = all(groups[task] is not None for task in tasks) and len(members) > 1
    over_runs = over_tasks = None
    if baseline is not None and name != baseline:
        found = differences(accuracy, name, baseline)
        if found:
            over_runs = Interval.of(list(found.values()))
            over_tasks = Interval.of(
                [
                    statistics.fmean(value for (own, _), value in found.items() if own == task)
                    for task in dict.fromkeys(task for task, _ in found)
                ]
            )
    return Row(
        method=name,
        cells=cells,
        groups=group_means,
        mean=_mean_over(by_task, [list(tasks)]),
        mean_of_groups=_mean_over(by_task, list(members.values())) if grouped else None,
        rank=ranks.get(name),
        over_runs=over_runs,
        over_tasks=over_tasks,
        parameters=Spread.of([run["parameters"] for run in runs]),
        head=Spread.of([run["head_parameters"] for run in runs]),
        seconds=statistics.fmean(run["seconds"] for run in runs),
    )


def _mean_over(
    by_task: Mapping[str, Mapping[int, float]], groups: Sequence[Sequence[str]]
) -> Spread | None:
    """Return the mean of the groups' means for every seed that all tasks have, over seeds.

    None where a task has no result: means over different tasks cannot be compared.
    """
    tasks = [task for group in groups for task in group]
    if not all(by_task[task] for task in tasks):
        return None
    seeds = set.intersection(*(set(by_task[task]) for task in tasks))
    if not seeds:
        return None

    def mean(seed: int) -> float:
        return statistics.fmean(
            statistics.fmean(by_task[task][seed] for task in group) for group in groups
        )

    return Spread.of([mean(seed) for seed in sorted(seeds)])


def _notes(records: Sequence[Mapping[str, Any]], protocol: str) -> list[str]:
    """Say where the records behind a table are not alike in what should be one."""
    notes = [f"Protocol: {protocol}."] if protocol else []
    for what, values in (
        ("checkpoints", {record["backbone"]["fingerprint"] for record in records}),
        ("preprocessings", {str(record["backbone"]["data_config"]) for record in records}),
        ("versions of the code", {record["machine"]["code"] for record in records}),
        ("precisions", {record["machine"]["precision"] for record in records}),
        ("devices", {record["machine"]["device"] for record in records}),
    ):
        if len(values) > 1:
            notes.append(f"The runs were made with {len(values)} different {what}.")
    return notes
