"""Gather the records of `pools.few_shot` and its tuned sister, and write their tables.

    python -m benchmarks pools.table gather --records DIR   # one packed file for each folder
    python -m benchmarks pools.table table                  # TABLE.md, from those files

A gain is paired: the same target, shots, draw and test images. Intervals are 95 % t-intervals, over
runs and over the means of the targets. "Best without a pool" is the row without a pool that has the
highest mean in that column, taken after the fact, which flatters it.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paired import interval
from vprompt.results.records import ENDING, Records

RESULTS = Path(__file__).parents[1] / "results" / "few-shot-pools"
ALONE = (
    "no prompt",
    "blank start",
    "random start",
    "linear, tuned",
    "VPT-Deep from blank",
    "VPT-Deep from blank, lr 0.001",
    "VPT-Deep from blank, lr 0.001, head refitted",
    "VPT-Deep from blank, lr 0.1",
    "VPT-Deep from blank, lr 0.1, head refitted",
    "VPT-Deep from blank, as by default",
    "VPT-Deep from blank, as by default, head refitted",
    "VPT-Deep from random",
    "adapter",
    "LoRA",
)
SOURCES = ("vit_tiny", "vit_tiny_start_rate")  # whose sources hardly moved, and moved far
Runs = list[dict[str, Any]]


def main() -> None:
    """Gather or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["gather", "table"])
    parser.add_argument("--records", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args()
    if options.command == "gather":
        for folder in sorted(f for f in options.records.iterdir() if f.is_dir()):
            gather(folder, RESULTS / folder.name)
    else:
        (RESULTS / "TABLE.md").write_text(tables(), encoding="utf-8")


def gather(folder: Path, target: Path) -> None:
    """Pack the records of a folder, with what tables need; what was packed before stays."""
    kept = Records(target)
    for name, record in Records(folder).find():
        record.pop("seconds", None)
        record["accuracy"] = {k: round(v, 5) for k, v in sorted(record["accuracy"].items())}
        facts = record.get("facts", {})
        record["facts"] = {name: _short(value) for name, value in sorted(facts.items())}
        record["weights"] = {
            name: [round(float(each), 4) for each in row]
            for name, row in record.get("weights", {}).items()
        }
        record["sizes"] = [round(float(each), 4) for each in record.get("sizes", [])]
        kept.write(name, record)
    packing = kept.pack()
    print(f"{packing.packed.name}: {packing.records} runs")


def runs_of(name: str) -> Runs:
    """Return the packed runs of a backbone, in the order of their names."""
    return [{**run, "name": key} for key, run in Records(RESULTS / name).find()]


def packed() -> list[str]:
    """Return the names that `runs_of` knows."""
    return sorted(path.name.removesuffix(ENDING) for path in RESULTS.glob(f"*{ENDING}"))


def _short(value: Any) -> Any:
    """Round what is kept of a row's facts, and leave out the points that were not chosen."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if k != "points"}
    return round(value, 5) if isinstance(value, float) else value


def tables() -> str:
    """Return every table as Markdown."""
    parts = [
        "# What a pool is worth with few images",
        "Written by `python -m benchmarks pools.table table` from the files beside it. "
        "Accuracy on at most 300 test images of each target, mean over runs, in per cent; gains in "
        "points with 95 % intervals.",
    ]
    for name in packed():
        runs = runs_of(name)
        parts.append(f"## {name.replace('_', ' ')}")
        for related in (True, False):
            for shots in sorted({run["shots"] for run in runs}):
                found = [r for r in runs if r["related"] == related and r["shots"] == shots]
                if found:
                    parts.append(_table(found, related, shots))
    parts.append(_compared())
    return "\n\n".join(parts) + "\n"


def _compared() -> str:
    """Return what sources that were learned at the rate of their start change, run by run."""
    near, far = ({run["name"]: run for run in runs_of(name)} for name in SOURCES)
    pairs = [(near[name], far[name]) for name in sorted(near.keys() & far.keys())]
    assert all(one["digest"] == other["digest"] for one, other in pairs)
    lines = [
        "## vit tiny: sources that moved far, against those that did not",
        "",
        "The same runs of `vit tiny start rate` (15 epochs at 0.1 of the start) and `vit tiny` (30 "
        "epochs at 0.005): their accuracy, and the paired difference over runs and by targets.",
        "",
        "| pool, images a class | runs | row | far | near | over runs | by targets |",
        "|---|---|---|---|---|---|---|",
    ]
    for related in (True, False):
        for shots in (1, 2, 5):
            found = [
                (one, other)
                for one, other in pairs
                if one["related"] == related and one["shots"] == shots
            ]
            for row in ("uniform, ensemble", "uniform, free scale", "uniform, published"):
                apart: dict[str, list[float]] = {}
                for one, other in found:
                    gain = 100 * (other["accuracy"][row] - one["accuracy"][row])
                    apart.setdefault(one["target"], []).append(gain)
                every = [gain for gains in apart.values() for gain in gains]
                means = [statistics.mean(gains) for gains in apart.values()]
                kind = "related" if related else "unrelated"
                lines.append(
                    f"| {kind}, {shots} | {len(found)} | {row} | "
                    f"{_mean([other for _, other in found], row):.1f} | "
                    f"{_mean([one for one, _ in found], row):.1f} | {interval(every, 1)} | "
                    f"{interval(means, 1)} |"
                )
    return "\n".join(lines)


def _table(runs: Runs, related: bool, shots: int) -> str:
    names = [name for name in rows_of(runs) if all(name in run["accuracy"] for run in runs)]
    some = [name for name in rows_of(runs) if name not in names]
    targets = sorted({run["target"] for run in runs})
    best = best_alone(runs)
    kind = "related" if related else "unrelated"
    lines = [
        f"### {shots} image{'s' if shots > 1 else ''} a class, {kind} pool",
        f"{len(runs)} runs on {len(targets)} targets ({', '.join(targets)}). Best without a pool: "
        f"{best}.",
        "",
        f"| row | accuracy | over no prompt | over {best} | over it, by targets |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(names, key=lambda name: -_mean(runs, name)):
        lines.append(
            f"| {name} | {_mean(runs, name):.1f} | {interval(gains(runs, name, 'no prompt'), 1)} | "
            f"{interval(gains(runs, name, best), 1)} | "
            f"{interval(by_targets(runs, name, best), 1)} |"
        )
    if some:
        lines += ["", "In some of these runs only, so compared within them:", ""]
        lines += ["| row | runs | accuracy | over no prompt |", "|---|---|---|---|"]
        for name in some:
            own = [run for run in runs if name in run["accuracy"]]
            lines.append(
                f"| {name} | {len(own)} | {_mean(own, name):.1f} | "
                f"{interval(gains(own, name, 'no prompt'), 1)} |"
            )
    return "\n".join(lines)


def rows_of(runs: Runs) -> list[str]:
    """Return the names of all rows."""
    return sorted({name for run in runs for name in run["accuracy"]})


def best_alone(runs: Runs) -> str:
    """Return the row without a pool of the highest mean accuracy."""
    known = [name for name in ALONE if all(name in run["accuracy"] for run in runs)]
    return max(known, key=lambda name: _mean(runs, name))


def gains(runs: Runs, name: str, other: str) -> list[float]:
    """Return the paired differences of all runs, in points."""
    return [100 * (run["accuracy"][name] - run["accuracy"][other]) for run in runs]


def by_targets(runs: Runs, name: str, other: str) -> list[float]:
    """Return the mean difference of every target, in points."""
    targets = sorted({run["target"] for run in runs})
    return [
        statistics.mean(gains([run for run in runs if run["target"] == target], name, other))
        for target in targets
    ]


def _mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    return 100 * statistics.mean(run["accuracy"][name] for run in runs)


if __name__ == "__main__":
    main()
