"""Tables and picture of `learning.curves` and `learning.places`.

    python -m benchmarks learning.tables             # from the committed learning.json
    python -m benchmarks learning.tables --collect   # first, one learning.json of all records

`results/learning/learning.json` holds every run, one a line; TABLE.md and curves.svg beside it
are made of it alone. Runs that are missing are named, and a table holds what is there.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning import common as learning
from benchmarks.learning import figure as learning_figure
from benchmarks.paired import gap, gap_of_targets, mean, spread
from benchmarks.searching.tables import agreement
from vprompt.core.files import read_json, write_text

Run = dict[str, Any]
NAMES = {
    "linear": "linear probe",
    "vpt": "VPT-Deep",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "robust": "PRO-VPT robust",
    "paper": "PRO-VPT paper, its own recipe",
    "paper_rates": "PRO-VPT paper, the rate of all",
    "paper_start": "VPT-Deep, start and dropout of the paper",
    "found": "DPL, found lengths",
    "uniform": "as many tokens, uniform",
    "random": "as many tokens, random lengths",
    "shuffled": "found lengths, blocks shuffled",
}
CURVES = ("linear", "vpt", "lora", "full")
PLACES = ("vpt", "robust", "paper", "paper_rates", "paper_start", "found", "uniform", "random")
PAIRS = (
    ("robust", "vpt"),
    ("paper", "vpt"),
    ("paper_rates", "vpt"),
    ("paper_rates", "paper_start"),
    ("found", "uniform"),
    ("found", "random"),
    ("found", "shuffled"),
    ("found", "vpt"),
)
# The heads that an accuracy can be of, as a suffix of the arm's name.
TRAINED, REFITTED, CHOSEN = "", ", refitted", ", by validation"
WANTED = 5.0  # points over the linear probe, without which a task says nothing about prompts


def main() -> None:
    """Collect if asked, then write the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--collect", action="store_true", help="read the records of --runs")
    parser.add_argument("--runs", type=Path, default=learning.RUNS)
    parser.add_argument("--picture", type=Path, help="a .png of the curves to look at")
    parser.add_argument("--results", type=Path, default=learning.RESULTS)
    options = parser.parse_args()
    path = options.results / "learning.json"
    if options.collect:
        write_text(path, as_lines(collect(options.runs)))
    found = read_json(path)
    write_text(options.results / "TABLE.md", tables(found))
    drawn = learning_figure.draw(found["runs"])
    drawn.save(options.results / "curves.svg")
    if options.picture is not None:
        drawn.save(options.picture)


def collect(folder: Path) -> dict[str, Any]:
    """Return all records of a folder as one value; what they share is said once."""
    records = [read_json(path) for path in sorted(folder.glob("*_seed*.json"))]
    if not records:
        raise SystemExit(f"No records in {folder}: run learning_curves.py first.")
    setups = {json.dumps(record["setup"]) for record in records}
    if len(setups) > 1:
        raise SystemExit(f"The records in {folder} are of {len(setups)} settings, not of one.")
    machines: list[Any] = []
    for record in records:
        machine = {key: v for key, v in record.pop("machine").items() if key != "created_at"}
        if machine not in machines:
            machines.append(machine)
        record["machine"] = machines.index(machine)
    backbones = [record.pop("backbone") for record in records]
    if any(backbone != backbones[0] for backbone in backbones):
        raise SystemExit(f"The records in {folder} are of several backbones.")
    return {
        "setup": records[0]["setup"],
        "backbone": backbones[0],
        "machines": machines,
        "runs": [_compact(record) for record in records],
    }


def _compact(record: Run) -> Run:
    """Return a record whose curves are columns."""
    made = {key: value for key, value in record.items() if key != "setup"}
    for holder in (made, *made.get("grid", ())):
        history = holder["history"]
        columns = ("train_loss", "val_accuracy", "val_loss")
        holder["history"] = {name: [row[name] for row in history] for name in columns}
    return made


def as_lines(found: dict[str, Any]) -> str:
    """Return JSON with a run a line."""
    dump: Callable[[Any], str] = lambda value: json.dumps(value, separators=(",", ":"))  # noqa: E731
    head = [f"{dump(key)}:{dump(value)}" for key, value in found.items() if key != "runs"]
    runs = ",\n".join(dump(run) for run in found["runs"])
    return "{" + ",\n".join(head) + f',\n"runs":[\n{runs}\n]}}\n'


def tables(found: dict[str, Any]) -> str:
    """Return all tables, as Markdown."""
    runs = found["runs"]
    paired = cases(runs)
    parts = [
        "# Where prompts learn\n\nWritten by `python -m benchmarks learning.tables` from "
        "learning.json.\n",
        _about(found, paired),
        curve_table(runs, paired),
        head_table(paired),
        place_table(runs, paired),
        pair_table(paired),
        search_table(runs),
        rate_table(runs),
    ]
    return "\n".join(part for part in parts if part)


def cases(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return, for every task and seed, the test accuracy of every arm and head."""
    made: dict[tuple[str, int], dict[str, Any]] = {}
    for run in runs:
        case = made.setdefault(
            (run["target"], run["seed"]),
            {"target": run["target"], "seed": run["seed"], "summary": {}},
        )
        if "heads" in run:
            heads, name = run["heads"], run["arm"]
            case["summary"] |= {
                name + TRAINED: heads["trained"]["acc1"],
                name + REFITTED: heads["refitted"]["acc1"],
                name + CHOSEN: heads[run["chosen_head"]]["acc1"],
            }
    order = list(learning.TARGETS)
    return sorted(made.values(), key=lambda case: (order.index(case["target"]), case["seed"]))


def _about(found: dict[str, Any], paired: Sequence[dict[str, Any]]) -> str:
    setup, targets = found["setup"], _targets(paired)
    seeds = sorted({case["seed"] for case in paired})
    precisions = sorted({machine["precision"] for machine in found["machines"]})
    lines = [
        f"Backbone `{setup['model']}` at {setup['size']} px, {', '.join(precisions)}; "
        f"{len(targets)} tasks, seeds {', '.join(map(str, seeds))}, {len(found['runs'])} runs. "
        f"A seed draws {setup['train']} training and {setup['val']} validation images. At most "
        f"{setup['epochs']} epochs of batches of {setup['batch']}, ended once the least validation "
        f"loss is {setup['patience']} epochs old; kept is the epoch of best validation accuracy. "
        "Rates are chosen on the validation images of the first seed. Test accuracy in %, the "
        "split opened once a run; differences are paired, in points, with 95 % t-intervals over "
        "runs and, in the column after it, over the means of the tasks.",
    ]
    missing = _missing(paired)
    if missing:
        lines += ["", f"Not run: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _missing(paired: Sequence[dict[str, Any]]) -> list[str]:
    arms = [arm for arm in NAMES if any(arm in case["summary"] for case in paired)]
    return [
        f"{arm} on {case['target']}, seed {case['seed']}"
        for case in paired
        for arm in arms
        if arm not in case["summary"]
    ]


def _targets(paired: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(case["target"] for case in paired))


def _with(paired: Sequence[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Return the cases that have all of these accuracies."""
    return [case for case in paired if all(key in case["summary"] for key in keys)]


def _gaps(paired: Sequence[dict[str, Any]], key: str, other: str) -> str:
    """Return two cells: a paired difference over runs, and over tasks."""
    both = _with(paired, key, other)
    if key == other or not both:
        return " | "
    return f"{gap(both, key, other)} | {gap_of_targets(both, key, other)}"


def _by_target(paired: Sequence[dict[str, Any]], key: str) -> list[str]:
    """Return the mean on every task, and over all cases."""
    own = _with(paired, key)
    cells = []
    for target in _targets(paired):
        there = [case for case in own if case["target"] == target]
        cells.append(f"{mean(there, key):.1f}" if there else "")
    return [*cells, spread(own, key)]


def _epochs(runs: Sequence[Run], arm: str) -> str:
    """Return the mean kept epoch, and the mean last one."""
    own = [run for run in runs if run["arm"] == arm]
    kept = statistics.mean(run["kept_epoch"] for run in own)
    last = statistics.mean(len(run["history"]["val_loss"]) - 1 for run in own)
    return f"{kept:.0f} of {last:.0f}"


def curve_table(runs: Sequence[Run], paired: Sequence[dict[str, Any]]) -> str:
    """Return what every method reaches, and on how many tasks VPT-Deep beats the probe."""
    shown = {
        "linear" + REFITTED: ("linear probe, closed form", "linear"),
        "linear" + TRAINED: ("linear probe, tuned", "linear"),
        "linear" + CHOSEN: ("linear probe, the better on validation", "linear"),
        **{arm: (NAMES[arm], arm) for arm in CURVES[1:]},
        "vpt" + CHOSEN: ("VPT-Deep, the better head on validation", "vpt"),
    }
    probe = "linear" + CHOSEN
    rows = [
        "## Where do prompts learn?",
        "",
        "| method | " + " | ".join(_targets(paired)) + " | mean | over the probe, runs | tasks "
        "| epoch kept |",
        "|---" * (len(_targets(paired)) + 5) + "|",
    ]
    for key, (name, arm) in shown.items():
        if _with(paired, key):
            cells = " | ".join(_by_target(paired, key))
            rows.append(
                f"| {name} | {cells} | {_gaps(paired, key, probe)} | {_epochs(runs, arm)} |"
            )
    return "\n".join([*rows, "", _verdict(paired, probe)]) + "\n"


def _verdict(paired: Sequence[dict[str, Any]], probe: str) -> str:
    """Say on how many tasks VPT-Deep beats the probe by enough."""
    gains = {}
    for target in _targets(paired):
        own = [c for c in _with(paired, "vpt", probe) if c["target"] == target]
        if own:
            gains[target] = mean(own, "vpt") - mean(own, probe)
    enough = sum(gain >= WANTED for gain in gains.values())
    listing = ", ".join(f"{target} {gain:+.1f}" for target, gain in gains.items())
    return (
        f"VPT-Deep with its trained head beats the linear probe (the better of the two on "
        f"validation) by {WANTED:g} points or more on {enough} of {len(gains)} tasks: {listing}."
    )


def head_table(paired: Sequence[dict[str, Any]]) -> str:
    """Return what a head that was fitted anew gives, and what choosing it on validation does."""
    rows = [
        "## A head fitted anew",
        "",
        "In closed form, on the training images' features at the kept epoch.",
        "",
        "| method | trained head | refitted | the better on validation | refitted over trained, "
        "runs | tasks | chosen over trained, runs | tasks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, name in NAMES.items():
        own = _with(paired, arm)
        if not own:
            continue
        cells = [spread(own, arm + head) for head in (TRAINED, REFITTED, CHOSEN)]
        cells += [_gaps(own, arm + REFITTED, arm), _gaps(own, arm + CHOSEN, arm)]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def place_table(runs: Sequence[Run], paired: Sequence[dict[str, Any]]) -> str:
    """Return every way to place tokens beside VPT-Deep."""
    arms = [arm for arm in (*PLACES, "shuffled") if _with(paired, arm)]
    if len(arms) < 2:
        return ""
    rows = [
        "## Do other places help?",
        "",
        "Trained heads; the last two columns take for every run the better head on validation.",
        "",
        "| arm | "
        + " | ".join(_targets(paired))
        + " | mean | over VPT-Deep, runs | tasks | tokens "
        "| moves | epoch kept | over VPT-Deep, better heads, runs | tasks |",
        "|---" * (len(_targets(paired)) + 9) + "|",
    ]
    for arm in arms:
        own = [run for run in runs if run["arm"] == arm]
        tokens = [run["tokens"] for run in own if "tokens" in run]
        moves = [run["placement"]["moves"] for run in own if run.get("placement")]
        cells = [
            *_by_target(paired, arm),
            _gaps(paired, arm, "vpt"),
            f"{statistics.mean(tokens):.0f}" if tokens else "as VPT-Deep",
            f"{statistics.mean(moves):.1f}" if moves else "",
            _epochs(runs, arm),
            _gaps(paired, arm + CHOSEN, "vpt" + CHOSEN),
        ]
        rows.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def pair_table(paired: Sequence[dict[str, Any]]) -> str:
    """Return the comparisons that the question is about."""
    rows = [
        "## The decisive comparisons",
        "",
        "| this | over that | n | trained heads, runs | tasks | better heads, runs | tasks |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, other in PAIRS:
        both = _with(paired, arm, other)
        if both:
            cells = [_gaps(both, arm + head, other + head) for head in (TRAINED, CHOSEN)]
            row = [NAMES[arm], NAMES[other], str(len(both)), *cells]
            rows.append("| " + " | ".join(row) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 4 else ""


def search_table(runs: Sequence[Run]) -> str:
    """Return the lengths that were found, and how far draws of a task agree."""
    own = [run for run in runs if run["arm"] == "search"]
    if not own:
        return ""
    rows = [
        "## What the search finds",
        "",
        "`agree`: the share of blocks for which two draws choose the same length (by chance). "
        "`gap`: validation accuracy of the mixture less that of the found lengths, in points.",
        "",
        "| task | found, block by block | tokens | agree | gap |",
        "|---|---|---|---|---|",
    ]
    for target in [name for name in learning.TARGETS if any(r["target"] == name for r in own)]:
        there = [run for run in own if run["target"] == target]
        found = [run["found"] for run in there]
        lengths = "<br>".join(" ".join(map(str, each)) for each in found)
        tokens = ", ".join(str(sum(each)) for each in found)
        apart = 100 * statistics.mean(run["gap"]["gap"] for run in there)
        rows.append(f"| {target} | {lengths} | {tokens} | {agreement(found)} | {apart:+.1f} |")
    return "\n".join(rows) + "\n"


def rate_table(runs: Sequence[Run]) -> str:
    """Return what every rate reached on the validation images of the first seed."""
    chosen = [run for run in runs if "grid" in run]
    if not chosen:
        return ""
    rows = [
        "## The rates",
        "",
        "Accuracy in % on the validation images of the first seed, at the kept epoch; the best is "
        "the rate of all seeds, and that of VPT-Deep the rate of all arms of places. Its test "
        "accuracy alone was looked at.",
        "",
        "| task | method | rates and what they reach | chosen |",
        "|---|---|---|---|",
    ]
    for run in chosen:
        name = "head_lr" if run["arm"] == "linear" else "lr"
        reached = ", ".join(
            f"{each['train_config'][name]:g}: "
            f"{100 * each['history']['val_accuracy'][each['kept_epoch']]:.1f}"
            for each in run["grid"]
        )
        best = run["train_config"][name]
        rows.append(f"| {run['target']} | {NAMES[run['arm']]} | {reached} | {best:g} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
