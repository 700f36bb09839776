"""Summary: the records of a benchmark become numbers: means, deviations, ranks and differences."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import rankdata, t

from vprompt.artifacts import final
from vprompt.bench import suite
from vprompt.bench.store import Cell, Store
from vprompt.core.errors import VPromptError

Run: TypeAlias = tuple[str, str, int]  # method, task, seed


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
    group: str | None
    cells: dict[str, Spread]
    groups: dict[str, Spread]
    mean: Spread | None
    mean_of_groups: Spread | None
    rank: float | None
    over_runs: Interval | None
    over_tasks: Interval | None
    parameters: float
    head_parameters: float
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
    recipe, cells = store.recipe(), store.cells()
    baseline = baseline or recipe.baseline
    names = [method.name for method in recipe.methods]
    if baseline is not None and baseline not in names:
        raise VPromptError(f"No method is called {baseline!r}. There are: {', '.join(names)}.")
    records = store.records(cells)
    runs = [run for cell, record in records.items() if (run := _run(cell, record, candidate))]
    if not runs:
        raise VPromptError(f"{store.folder} holds no finished run to show.")
    groups = {task.name: task.group or suite.group_of(task.name) for task in recipe.tasks}
    present = [m for m in recipe.methods if any(run["method"] == m.name for run in runs)]
    accuracy = {(run["method"], run["task"], run["seed"]): run["accuracy"] for run in runs}
    results = _Results(suite.ordered(groups, groups), groups, accuracy)
    ranks, ranked = average_ranks(accuracy, [method.name for method in present])
    rows = [
        Row(
            method=method.name,
            group=method.group,
            **results.means(method.name),
            **results.gaps(method.name, baseline),
            **_cost([run for run in runs if run["method"] == method.name]),
            rank=ranks.get(method.name),
        )
        for method in present
    ]
    title = recipe.name + (f", {candidate}" if candidate else "")
    notes = [f"Ranks are over {ranked} runs that all methods share."] if ranks else []
    notes += _notes([*records.values()], recipe.protocol)
    missing = len(cells) - len(records)
    if failed := len(store.failed().keys() & {cell.id for cell in cells}):
        notes.append(f"{failed} runs failed.")
    return Summary(title, results.tasks, groups, rows, baseline, runs, missing, notes)


def average_ranks(
    accuracy: Mapping[Run, float], methods: Sequence[str]
) -> tuple[dict[str, float], int]:
    """Return each method's mean rank, 1 the best, over the runs (task, seed) that all share.

    Ties get the mean of their ranks. Also returns the number of shared runs; no ranks without any.
    """
    pairs = {key[1:] for key in accuracy}
    shared = [p for p in sorted(pairs) if all((name, *p) in accuracy for name in methods)]
    if not shared:
        return {}, 0
    table = np.array([[accuracy[(name, *pair)] for name in methods] for pair in shared])
    ranks = rankdata(-table.round(10), axis=1).mean(0)
    return dict(zip(methods, ranks.tolist(), strict=True)), len(shared)


def differences(
    accuracy: Mapping[Run, float], method: str, baseline: str
) -> dict[tuple[str, int], float]:
    """Return the paired differences of a method to the baseline, by task and seed."""
    return {
        (task, seed): value - accuracy[(baseline, task, seed)]
        for (name, task, seed), value in accuracy.items()
        if name == method and (baseline, task, seed) in accuracy
    }


@dataclass(frozen=True)
class _Results:
    """The accuracies of all runs, in %, and how tasks are grouped."""

    tasks: list[str]
    groups: Mapping[str, str | None]
    accuracy: Mapping[Run, float]

    def means(self, method: str) -> dict[str, Any]:
        """Return a method's cells, the means of its groups, and both means over all tasks."""
        members: dict[str, list[str]] = {}
        for task in self.tasks:
            if (group := self.groups[task]) is not None:
                members.setdefault(group, []).append(task)
        grouped = all(self.groups[task] is not None for task in self.tasks) and len(members) > 1
        own = {task: self._seeds(method, task) for task in self.tasks}
        means = {group: self._mean(method, [tasks]) for group, tasks in members.items()}
        return {
            "cells": {task: Spread.of([*found.values()]) for task, found in own.items() if found},
            "groups": {group: spread for group, spread in means.items() if spread is not None},
            "mean": self._mean(method, [self.tasks]),
            "mean_of_groups": self._mean(method, [*members.values()]) if grouped else None,
        }

    def gaps(self, method: str, baseline: str | None) -> dict[str, Any]:
        """Return a method's difference to the baseline, over runs and over the tasks' means."""
        found = {} if baseline is None else differences(self.accuracy, method, baseline)
        if not found or method == baseline:
            return {"over_runs": None, "over_tasks": None}
        by_task: dict[str, list[float]] = {}
        for (task, _), value in found.items():
            by_task.setdefault(task, []).append(value)
        return {
            "over_runs": Interval.of([*found.values()]),
            "over_tasks": Interval.of([statistics.fmean(values) for values in by_task.values()]),
        }

    def _seeds(self, method: str, task: str) -> dict[int, float]:
        return {s: v for (m, t, s), v in self.accuracy.items() if (m, t) == (method, task)}

    def _mean(self, method: str, groups: Sequence[Sequence[str]]) -> Spread | None:
        """Return the mean of the groups' means for every seed that all tasks have, over seeds.

        None where there is no such seed: means over different tasks cannot be compared.
        """
        own = [[self._seeds(method, task) for task in group] for group in groups]
        seeds = set.intersection(*(set(found) for group in own for found in group))
        values = [
            statistics.fmean(statistics.fmean(found[seed] for found in group) for group in own)
            for seed in sorted(seeds)
        ]
        return Spread.of(values) if values else None


def _run(cell: Cell, record: Mapping[str, Any], candidate: str | None) -> dict[str, Any] | None:
    measured = final.of(record) if candidate is None else record["test"].get(candidate)
    if measured is None:
        return None
    parameters = dict(record["tuning"]["parameters"])
    head = parameters.pop("head")
    return {
        "method": cell.method,
        "task": cell.task,
        "seed": cell.seed,
        "accuracy": 100 * measured["acc1"],
        "parameters": float(sum(parameters.values())),
        "head_parameters": float(head),
        "seconds": record["total_seconds"],
        "id": cell.id,
    }


def _cost(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: statistics.fmean(run[name] for run in runs)
        for name in ("parameters", "head_parameters", "seconds")
    }


def _notes(records: Sequence[Mapping[str, Any]], protocol: str) -> list[str]:
    """Say where the records behind a table are not alike in what should be one."""
    notes = [f"Protocol: {protocol}."] if protocol else []
    trained = sorted({record["job"]["train_on"] for record in records})
    kept = sorted({record["tuning"]["selection"] for record in records})
    notes.append(f"Trained on {' and '.join(trained)}; kept: {'; or '.join(kept)}.")
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
