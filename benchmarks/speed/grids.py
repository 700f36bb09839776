"""Grids: what a grid costs with halving and without, and against as many commands.

    python -m benchmarks speed.grids halving --data DIR --models DIR
    python -m benchmarks speed.grids commands --data DIR

`halving`: on ten image sets, VPT-Deep on ViT-Ti at 64 px at 24 settings (eight rates of the prompt,
three of the head), all to the end and with `--halving`, and one run at the usual setting. All are
fresh trainings of one process on one thread, so processor time is compared. What each chooses is
compared by the validation accuracy that it chose by, and on validation images that it never saw:
the best of 24 results on a hundred images is partly luck, which the others do not have.

`commands`: sixteen rates in one `vprompt learn --grid` against sixteen `vprompt learn`, each with
its start-up, on the demonstration's backbone at 70 px; wall time on all cores, three rounds.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, new_parser
from benchmarks.learning import common as learning
from benchmarks.speed.timing import machine, spread
from vprompt import stages
from vprompt.cli import terminal
from vprompt.core.files import write_json
from vprompt.core.registry import build
from vprompt.data.task import Split, Task, split_by_sizes
from vprompt.learning import classifier
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone
from vprompt.opening import open_task
from vprompt.results import measure

SETS = (
    "bbbc039_count",
    "chars74k_digits",
    "coil20",
    "digits",
    "dtd10",
    "elpv4",
    "oxford_flowers17",
    "oxford_pets3",
    "pacs",
    "rsscn7",
)
METHOD = "vpt(num_virtual_tokens=10)"
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
HEADS = [3e-4, 1e-3, 3e-3]
SETTINGS = ("size", "train", "val", "unseen", "epochs", "seed")
MANY = [1e-3 * (1 + row) for row in range(16)]


def main() -> None:
    """Run one part and write its record."""
    parser = new_parser(__doc__)
    parser.add_argument("part", choices=("halving", "commands"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", help="another backbone, such as `tiny`")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--train", type=int, default=200, help="images")
    parser.add_argument("--val", type=int, default=200, help="images to choose by")
    parser.add_argument("--unseen", type=int, default=300, help="images to compare by")
    parser.add_argument("--seed", type=int, default=0, help="of the images and their order")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "speed")
    options = parser.parse_args()
    found = {"halving": halving, "commands": commands}[options.part](options)
    write_json(options.output / f"grids-{options.part}.json", {**found, "machine": machine()})


def halving(options: argparse.Namespace) -> dict[str, Any]:
    """Compare a grid of 24 settings with and without halving on every set."""
    torch.set_num_threads(1)
    backbone = learning.open_model(options)
    found = [_case(options, backbone, name) for name in options.sets]
    ratios = [
        each["processor_seconds"]["halved"] / each["processor_seconds"]["one"] for each in found
    ]
    return {
        "method": METHOD,
        "grid": {"lr": RATES, "head_lr": HEADS},
        **{name: getattr(options, name) for name in SETTINGS},
        "cases": found,
        "halved_over_one_run": spread(ratios),
        "no_worse": {name: _no_worse(found, name) for name in ("val_accuracy", "unseen_accuracy")},
    }


def _no_worse(cases: list[dict[str, Any]], by: str) -> int:
    return sum(each[by]["halved"] >= each[by]["full"] for each in cases)


def drawn(whole: Task, options: argparse.Namespace) -> tuple[Task, Split]:
    """Return the task with the images to train on and to choose by, and those to compare by."""
    assert whole.val is not None
    both = whole.train + whole.val
    sizes = [options.train, options.val, options.unseen]
    parts = split_by_sizes(both.labels, sizes, options.seed, f"grids, {whole.name}")
    names = ("train", "val", "unseen")
    train, val, unseen = (both.subset(rows, name) for name, rows in zip(names, parts, strict=False))
    return replace(whole, train=train, val=val), unseen


def _case(options: argparse.Namespace, backbone: Backbone, name: str) -> dict[str, Any]:
    config = TrainConfig(epochs=options.epochs, batch_size=16, seed=options.seed)
    there = options.data / name
    task, split = drawn(open_task(str(there) if there.is_dir() else name), options)
    unseen = task.examples(split, backbone.data_config)
    with terminal.progress(quiet=True) as progress:
        setting = stages.prepare(backbone, task, config, None, 0, skip_bad=False, progress=progress)

        def spend(grid: dict[str, list[float]], halve: bool) -> tuple[float, Any]:
            began = time.process_time()
            tuned = stages.tune_best(
                setting,
                lambda: build("adapters", METHOD)(backbone),
                stages.grid_points(config, grid),
                halving=halve,
            )
            spent = time.process_time() - began
            setting.forget_checkpoints()
            setting.checkpoints.clear()
            return spent, tuned

        grid = {"lr": RATES, "head_lr": HEADS}
        spend({}, False)  # features that all share are there from now on
        arms = {"one": ({}, False), "halved": (grid, True), "full": (grid, False)}
        seconds, accuracy, others, chosen = {}, {}, {}, {}
        for arm, asked in arms.items():
            seconds[arm], (tuned, config_of, _) = spend(*asked)
            accuracy[arm] = tuned.record(tuned.kept_epoch).val_accuracy
            features = classifier.features_of(backbone, learning.adapted(tuned), unseen)
            others[arm] = measure.judge(tuned.head.logits(features), unseen.labels).acc1
            chosen[arm] = {"lr": config_of.lr, "head_lr": config_of.head_lr}
    made = {
        "set": name,
        "processor_seconds": seconds,
        "val_accuracy": accuracy,
        "unseen_accuracy": others,
        "chosen": chosen,
    }
    print(made, flush=True)
    return made


def commands(options: argparse.Namespace) -> dict[str, Any]:
    """Compare one command of sixteen rates with sixteen commands."""
    data = options.data / "oxford_flowers17"
    usual = ["learn", str(data), "--shots", "8", "--epochs", "4", "--batch-size", "16", "-q"]
    usual += ["--model", options.model or "demo", "--no-test"]
    usual += [] if options.model else ["--img-size", "70"]
    wall: dict[str, list[float]] = {"one grid": [], "sixteen commands": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rates = ",".join(f"{rate:g}" for rate in MANY)
            wall["one grid"].append(
                _run([*usual, "--grid", f"lr={rates}", "--output", f"{folder}/grid"])
            )
            began = time.perf_counter()
            for row, rate in enumerate(MANY):
                _run([*usual, "--lr", f"{rate:g}", "--output", f"{folder}/{row}"])
            wall["sixteen commands"].append(time.perf_counter() - began)
        print({name: times[-1] for name, times in wall.items()}, flush=True)
    ratios = [
        many / one for one, many in zip(wall["one grid"], wall["sixteen commands"], strict=True)
    ]
    return {
        "command": " ".join(["vprompt", *usual]).replace(str(options.data), "DATA"),
        "wall_seconds": {name: spread(times) for name, times in wall.items()},
        "times_as_fast": spread(ratios),
    }


def _run(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vprompt", *arguments], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
