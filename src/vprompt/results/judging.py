"""Judging: which metric would have chosen the right source, with intervals and three baselines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vprompt.core.errors import VPromptError
from vprompt.core.plain import in_markdown
from vprompt.core.randomness import numpy_stream
from vprompt.results import ranking
from vprompt.results.ranking import MEASURES, Numbers, Problem

BASELINES = ("knn", "trace_ratio")
RANDOM = "random ranking"


@dataclass(frozen=True)
class Interval:
    """A value with the 2.5 % and 97.5 % points of its resamples; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """One metric: its measures, how often chance does as well, and its time for one source.

    `targets` and `candidates` count what it was judged on; it may lack scores that others have.
    """

    metric: str
    measures: dict[str, Interval]
    p_value: float | None
    seconds: float | None
    targets: int
    candidates: int


@dataclass(frozen=True)
class Judgement:
    """All metrics on the same records, the best by weighted tau first.

    `own` names the targets whose own prompt was among their sources, which flatters every measure.
    """

    rows: list[Row]
    targets: list[str]
    own: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def judge(
    records: Iterable[Mapping[str, Any]], *, resamples: int = 2000, seed: int = 0
) -> Judgement:
    """Judge the metrics of records `{target, source, scores, accuracy_after_tuning, seconds}`.

    `scores` and `seconds` are by metric, a score that does not exist is None; a record may have a
    `seed`, by which measures are averaged within their target. The question is source selection:
    one target, many sources. Every figure is a mean over targets, its interval over targets and
    candidates redrawn `resamples` times. The baselines k-NN and trace ratio must be among the
    scores; the random ranking is added, and its interval is what single random rankings reach.

    Raises VPromptError where records are incomplete, double, or too few to rank.
    """
    table = _tabulate(records)
    names = sorted({name for each in table.values() for found in each for name in found["scores"]})
    lacking = [name for name in BASELINES if name not in names]
    if lacking:
        raise VPromptError(
            f"The records hold no scores of {' and '.join(lacking)}, the baselines of every "
            "comparison. Compute all metrics of every source."
        )
    rows = [_row(name, table, resamples, seed) for name in names]
    rows.append(_random_row(table, resamples, seed))
    rows.sort(key=lambda row: -_or(row.measures["weighted tau"].value, -2.0))
    own = sorted(t for t, each in table.items() if any(found["source"] == t for found in each))
    return Judgement(rows, sorted(table), own)


def markdown(judgement: Judgement) -> str:
    """Return the table and what a reader must know of it; regrets in percentage points."""
    heads = ["metric", *MEASURES, "p", "s per source", "targets x sources"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in judgement.rows:
        baseline = " (baseline)" if row.metric in (*BASELINES, RANDOM) else ""
        cells = [in_markdown(row.metric) + baseline]
        cells += [_cell(row.measures[name], name.startswith("regret")) for name in MEASURES]
        cells += ["" if row.p_value is None else f"{row.p_value:.3f}"]
        cells += ["" if row.seconds is None else f"{row.seconds:.3f}"]
        cells += [f"{row.targets} x {row.candidates}"]
        lines.append("| " + " | ".join(cells) + " |")
    targets = in_markdown(", ".join(judgement.targets))
    own = in_markdown(", ".join(judgement.own))
    lines += [
        "",
        f"Source selection on {len(judgement.targets)} targets ({targets}). "
        "In brackets: 95 % bootstrap interval over targets and sources; for the random ranking, "
        "what 95 % of single random rankings reach. p: share of permutations with as high a mean "
        "weighted tau, one-sided. Regret: percentage points of accuracy lost by tuning only the "
        "best 1 or 3 sources by score. "
        + (
            f"The own prompt of {own} is among its sources, which flatters every measure."
            if own
            else "No target's own prompt is among its sources."
        ),
    ]
    return "\n".join(lines) + "\n"


def _tabulate(records: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the records by target, checked."""
    table: dict[str, list[dict[str, Any]]] = {}
    seen = set()
    for record in records:
        needed = ("target", "source", "scores", "accuracy_after_tuning", "seconds")
        lacking = [key for key in needed if key not in record]
        if lacking:
            raise VPromptError(f"A record lacks {lacking[0]!r}; it needs: {', '.join(needed)}.")
        key = (record["target"], record.get("seed", 0), record["source"])
        if key in seen:
            raise VPromptError(
                f"There are two records of source {key[2]!r} on {key[0]!r}, seed {key[1]}."
            )
        seen.add(key)
        table.setdefault(str(record["target"]), []).append({"seed": 0, **record})
    if not table:
        raise VPromptError("There are no records to judge metrics by.")
    return table


def _problem(metric: str, found: Sequence[Mapping[str, Any]]) -> Problem | None:
    """Return the ranking problem of a target, of sources that have a score under every seed."""
    values = {(each["seed"], each["source"]): each for each in found}
    seeds = sorted({seed for seed, _ in values})
    sources = sorted({source for _, source in values})

    def scored(seed: int, source: str) -> bool:
        record = values.get((seed, source))
        return record is not None and _is_number(record["scores"].get(metric))

    kept = [source for source in sources if all(scored(seed, source) for seed in seeds)]
    if len(kept) < 2:
        return None
    rows = [[values[seed, source] for source in kept] for seed in seeds]
    scores = np.array([[r["scores"][metric] for r in row] for row in rows], dtype=np.float64)
    reached = np.array([[r["accuracy_after_tuning"] for r in row] for row in rows], np.float64)
    return Problem(scores, reached)


def _row(
    metric: str, table: Mapping[str, Sequence[Mapping[str, Any]]], resamples: int, seed: int
) -> Row:
    found = [_problem(metric, each) for each in table.values()]
    problems = [problem for problem in found if problem is not None]
    spent = [
        each["seconds"][metric]
        for records in table.values()
        for each in records
        if _is_number(each["seconds"].get(metric))
    ]
    seconds = float(np.mean(spent)) if spent else None
    if not problems:
        none = {name: Interval(None, None, None) for name in MEASURES}
        return Row(metric, none, None, seconds, 0, 0)
    # The same draws for every metric, so that their intervals are of the same resamples.
    drawn = ranking.bootstrap(problems, numpy_stream(seed, "bootstrap"), resamples=resamples)
    values = ranking.average(problems)
    measures = {name: _interval(values[name], drawn[name]) for name in MEASURES}
    shuffles = numpy_stream(seed, "permutations")
    p_value = ranking.permutation_p_value(problems, shuffles, permutations=resamples)
    return Row(metric, measures, _defined(p_value), seconds, len(problems), _most(problems))


def _random_row(table: Mapping[str, Sequence[Mapping[str, Any]]], rankings: int, seed: int) -> Row:
    """Return what random rankings reach, on the sources on which k-NN is judged."""
    found = [_problem(BASELINES[0], each) for each in table.values()]
    problems = [problem for problem in found if problem is not None]
    if not problems:
        raise VPromptError("No target has two sources with scores; there is nothing to rank.")
    drawn = ranking.chance(problems, numpy_stream(seed, "random rankings"), rankings=rankings)
    measures = {name: _interval(float(np.mean(drawn[name])), drawn[name]) for name in MEASURES}
    return Row(RANDOM, measures, None, None, len(problems), _most(problems))


def _most(problems: Sequence[Problem]) -> int:
    return max(problem.scores.shape[1] for problem in problems)


def _interval(value: float, drawn: Numbers) -> Interval:
    defined = drawn[np.isfinite(drawn)]
    if not len(defined) or not np.isfinite(value):
        return Interval(_defined(value), None, None)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _cell(interval: Interval, percent: bool) -> str:
    if interval.value is None:
        return ""
    scale, digits = (100, 1) if percent else (1, 2)
    text = f"{scale * interval.value:.{digits}f}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f})"
