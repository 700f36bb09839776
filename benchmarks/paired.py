"""Paired: means, differences and ranks over runs that share targets and draws.

A run is `{"target", "seed", "summary": {name: accuracy in [0, 1]}}`.
"""

import statistics
from collections.abc import Mapping

from scipy.stats import rankdata, t


def mean(found: list[dict], name: str) -> float:
    """Return the mean accuracy over the runs, in per cent."""
    return 100 * statistics.mean(run["summary"][name] for run in found)


def spread(found: list[dict], name: str) -> str:
    """Return the mean over targets, and its deviation between draws."""
    targets = {run["target"] for run in found}
    draws = [  # a draw that some targets lack has a mean over others
        draw
        for draw in sorted({run["seed"] for run in found})
        if {run["target"] for run in found if run["seed"] == draw} == targets
    ]
    means = [mean([run for run in found if run["seed"] == draw], name) for draw in draws]
    spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.1f}{spread}"


def gap(found: list[dict], name: str, other: str) -> str:
    """Return the mean paired difference in points with its 95 % t-interval."""
    return interval([100 * (run["summary"][name] - run["summary"][other]) for run in found], 1)


def gap_of_targets(found: list[dict], name: str, other: str) -> str:
    """Return the same with the targets' mean differences as the sample, not the runs' own.

    Draws of one target resemble one another, so what holds for further targets is told by these.
    """
    gaps: dict[str, list[float]] = {}
    for run in found:
        gap = 100 * (run["summary"][name] - run["summary"][other])
        gaps.setdefault(run["target"], []).append(gap)
    return interval([statistics.mean(own) for own in gaps.values()], 1)


def interval(gaps: list[float], digits: int) -> str:
    """Return a mean with its 95 % t-interval."""
    middle = statistics.mean(gaps)
    if len(gaps) < 2:
        return f"{middle:+.{digits}f}"
    half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / len(gaps) ** 0.5
    return f"{middle:+.{digits}f} ({middle - half:+.{digits}f} to {middle + half:+.{digits}f})"


def ranks(found: list[dict], names: list[str]) -> dict[str, float]:
    """Return every name's mean rank over the runs, 1 the best."""
    rows = [rankdata([-run["summary"][name] for name in names]) for run in found]
    return {name: statistics.mean(row[i] for row in rows) for i, name in enumerate(names)}


def by_target(found: list[dict], arms: Mapping[str, str]) -> list[str]:
    """Return rows of Markdown: the mean accuracy of every arm, by its label, on every target."""
    targets = sorted({run["target"] for run in found})
    rows = ["", "By target, mean over draws:", ""]
    rows += ["| arm | " + " | ".join(targets) + " |", "|---" * (len(targets) + 1) + "|"]
    for arm, label in arms.items():
        cells = [f"{mean([r for r in found if r['target'] == t], arm):.1f}" for t in targets]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return rows
