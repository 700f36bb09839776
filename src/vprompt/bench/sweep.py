"""Sweep: finished runs of HGPrompt that differ in lambda alone become a curve for each target."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vprompt.bench import suite
from vprompt.bench.store import Store
from vprompt.bench.summary import Spread, summarise
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.report.comparisons import Curve

FEWEST = 3  # values of lambda that make a curve
Accuracies = dict[str, list[float]]  # over seeds, by task


def curves(
    store: Store, *, method: Sequence[str] = (), candidate: str | None = None
) -> list[Curve]:
    """Return the accuracy by lambda on every target; of several such families, the longest.

    Two ends belong to it where they were added up and tuned in the same way: without an alignment
    lambda is 0, and uniform weights are where it has no end.
    """
    summary = summarise(store, candidate=candidate)
    measured = {(r["method"], r["task"], r["seed"]): r["accuracy"] for r in summary.runs}
    lines: dict[tuple[str, str, str], dict[float, Accuracies]] = {}
    zeros: dict[tuple[str, str], Accuracies] = {}
    limits: dict[str, Accuracies] = {}
    for cell, record in store.select(methods=method or None):
        accuracy = measured.get((cell.method, cell.task, cell.seed))
        if record["command"] != "combine" or accuracy is None:
            continue
        spec, how = registry.parse(record["method"]), _how(record)
        if spec.name == "uniform":
            own = limits.setdefault(how, {})
        elif spec.name == "hgprompt":
            alignment, value, rest = _split(spec, record)
            if value == 0:
                own = zeros.setdefault((how, rest), {})
            else:
                own = lines.setdefault((how, rest, alignment), {}).setdefault(value, {})
        else:
            continue
        own.setdefault(cell.task, []).append(accuracy)
    longest = max(lines, key=lambda key: len(lines[key]), default=None)
    if longest is None or len(lines[longest]) < FEWEST:
        raise VPromptError(
            f"{store.folder} holds no {FEWEST} finished methods that differ in lambda alone. Run a "
            "recipe with several of hgprompt(alignment=uniform, lambda_=...), as "
            "benchmarks/recipes/lambda-sweep.yaml does."
        )
    how, rest, _ = longest
    found = {0.0: zeros.get((how, rest), {}), **lines[longest], math.inf: limits.get(how, {})}
    return _by_task(found, summary.tasks)


def _split(spec: registry.Spec, record: Mapping[str, Any]) -> tuple[str, float, str]:
    """Return the alignment of a run of HGPrompt, its lambda, and whatever else it was told."""
    told = {k: v for k, v in spec.settings.items() if k not in ("lambda_", "alignment")}
    chosen = (record["transfer"].get("solution") or {}).get("chosen") or spec.settings
    alignment = chosen.get("alignment", "none")
    value = 0.0 if alignment == "none" else float(chosen.get("lambda_", 1.0))
    return alignment, value, json.dumps(told, sort_keys=True)


def _how(record: Mapping[str, Any]) -> str:
    """Return how the prompts of a run were added up and tuned."""
    train = {key: value for key, value in record["train"].items() if key != "seed"}
    told = {key: record.get(key) for key in ("align", "scale", "safeguard")}
    return json.dumps([told, train], sort_keys=True)


def _by_task(found: Mapping[float, Accuracies], tasks: Sequence[str]) -> list[Curve]:
    made = []
    for task in tasks:
        spreads = {v: Spread.of(found[v][task]) for v in sorted(found) if task in found[v]}
        if spreads:
            points = {value: (spread.mean, spread.std) for value, spread in spreads.items()}
            made.append(Curve(suite.label_of(task), points))
    return made
