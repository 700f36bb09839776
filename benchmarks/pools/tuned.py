"""What is a pool worth after tuning? Every method at one budget, against none and with none.

    python -m benchmarks pools.tuned --data DIR --models DIR --pools DIR --part 0/2

Eight targets, four of them with a related pool, 2 and 5 images a class, three draws. Twelve epochs
at batch 16 for all; rates are each method's own. There are no validation images, so the last epoch
is kept and nothing is chosen by the test split, which every run opens once, at its end. A refitted
head is fitted in closed form after training, on the few training images.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pools import data
from benchmarks.pools.few_shot import TESTED, limited, set_aside
from vprompt import flow, stages
from vprompt.artifacts import final
from vprompt.core.precision import resolve
from vprompt.data.task import Task
from vprompt.learning.train_config import TrainConfig, combining_defaults
from vprompt.models.backbone import Backbone
from vprompt.results import runs
from vprompt.results.records import Records

RESULTS = Path(__file__).parents[1] / "results" / "few-shot-pools"
TARGETS = (
    "oxford_flowers17",
    "gtsrb-3",
    "dtd10",
    "cifar100-0",
    "rsscn7",
    "omniglot100-0",
    "elpv4",
    "pacs-sketch",
)
SHOTS, DRAWS = (2, 5), 3
BUDGET = {"epochs": 12, "batch_size": 16, "keep": "last"}

PLAIN, OWN = {"lr_unit": "none"}, {"lr_unit": "start"}  # what rates are told in

# Without a pool: the method, and what it changes of its own training settings.
ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "linear, tuned": ("linear", {}),
    "VPT-Deep from blank": ("vpt", {"lr": 5e-3, **PLAIN}),
    "VPT-Deep from blank, lr 0.001": ("vpt", {"lr": 1e-3, **PLAIN}),
    "VPT-Deep from blank, lr 0.1": ("vpt", {"lr": 0.1, **PLAIN}),
    "VPT-Deep from blank, lr 0.1, head refitted": ("vpt", {"lr": 0.1, "head": "refitted", **PLAIN}),
    "VPT-Deep from blank, as by default": ("vpt", {}),
    "VPT-Deep from blank, as by default, head refitted": ("vpt", {"head": "refitted"}),
    "VPT-Deep from random": ("vpt(prompt_init=vpt_uniform)", {"lr": 1e-3, **PLAIN}),
    "adapter": ("adapter", {}),
    "LoRA": ("lora", {}),
}
# With a pool: the method, and what it changes of the sum and of its training.
POOLED: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform, published": ("uniform", {}),
    "HGPrompt, published": ("hgprompt(preset=paper, score=trace_ratio)", {}),
    "SPoT, published": ("spot(epochs=3)", {}),
    "PANDA, published": ("panda", {}),
    "ATTEMPT, published": ("attempt", {}),
    "moves, untuned": ("moves", {"epochs": 0}),
    "moves, tuned": ("moves", {}),
    "moves, tuned, head refitted": ("moves", {"head": "refitted"}),
    "moves, one sum, tuned": ("moves", {"form": "sum"}),
    "moves, one sum, tuned, head refitted": ("moves", {"form": "sum", "head": "refitted"}),
    "moves, one sum, tuned, 0.03 of the start": ("moves", {"form": "sum", "lr": 0.03, **OWN}),
    "moves, one sum, tuned, 0.1 of the start": ("moves", {"form": "sum", "lr": 0.1, **OWN}),
    "moves, one sum, tuned, 0.1 of the start, head refitted": (
        "moves",
        {"form": "sum", "lr": 0.1, "head": "refitted", **OWN},
    ),
    "moves, distilled to one prompt": ("moves", {"form": "distil"}),
}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of weights")
    parser.add_argument("--pools", type=Path, required=True, help="folder of the sources")
    parser.add_argument("--backbone", choices=data.BACKBONES, default="vit_tiny")
    parser.add_argument("--targets", nargs="+", default=[*TARGETS])
    parser.add_argument("--draws", type=int, nargs="+", default=[*range(DRAWS)])
    parser.add_argument("--part", default="0/1", help="which of how many parts of the targets")
    parser.add_argument("--rows", nargs="+", default=[*ALONE, *POOLED], help="names of the tables")
    parser.add_argument("--shots", type=int, nargs="+", default=[*SHOTS])
    parser.add_argument(
        "--on",
        choices=["test", "val"],
        default="test",
        help="val: on training images of the target that are set aside, to choose settings by",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = data.backbone(options.backbone, options.models)
    part, parts = (int(number) for number in options.part.split("/"))
    records = Records(options.output / f"{options.backbone}_tuned")
    for draw in options.draws:
        for name in options.targets[part::parts]:
            task = data.task(name, options.data)
            task = limited(task, TESTED) if options.on == "test" else set_aside(task, TESTED)
            sources = [m for m in data.family_of(name).members if m != name]
            pool = [options.pools / source for source in sources]
            for shots in options.shots:
                run = f"{name}_{shots}shots_draw{draw}"
                record = records.read(run) if run in records else _blank(name, shots, draw)
                for row in options.rows:
                    if row not in record["accuracy"]:
                        run_row(record, row, backbone, task, pool, shots, draw)
                        records.write(run, record)
                print(json.dumps({"run": run, "seconds": record.get("seconds")}), flush=True)


def _blank(name: str, shots: int, draw: int) -> dict[str, Any]:
    related = data.family_of(name).related
    return {
        "target": name,
        "related": related,
        "shots": shots,
        "draw": draw,
        "accuracy": {},
        "seconds": {},
    }


def run_row(
    record: dict[str, Any],
    row: str,
    backbone: Backbone,
    task: Task,
    pool: list[Path],
    shots: int,
    draw: int,
) -> None:
    """Train one row and write its accuracy, its untuned start's and its time into the record."""
    began = time.perf_counter()
    if row in ALONE:
        method, own = ALONE[row]
        config = TrainConfig.checked(
            {**stages.training_defaults(method), **BUDGET, "seed": draw, **own}
        )
        found = flow.learn(
            task, model=backbone, method=method, config=config, shots=shots, draw=draw
        )
    else:
        method, own = POOLED[row]
        form = own.get("form")
        usual = combining_defaults(method, form or "sum")
        budget = {**BUDGET, **{key: own[key] for key in own if key != "form"}}
        config = TrainConfig.checked({**usual, **budget, "seed": draw})
        found = flow.combine(
            task,
            pool=pool,
            model=backbone,
            method=method,
            config=config,
            shots=shots,
            draw=draw,
            screen="off",
            form=form,
        )
        record["accuracy"].setdefault("no prompt", found.test["no prompt"].acc1)
        if "moves" in found.run:
            moves = found.run["moves"]
            record.setdefault("facts", {})[row] = {
                "chosen": moves["chosen"],
                "gain": moves["gain"],
                "form": moves["form"],
                "unused": moves.get("unused"),
            }
    own = found.test[final.name_in(found.run)]
    record["accuracy"][row] = own.acc1
    record["images"] = found.run["task"]["splits"]["train"]["images"]
    record["test_images"] = own.images
    record["seconds"][row] = round(time.perf_counter() - began, 2)
    record["machine"] = runs.describe_machine(
        backbone.device, resolve(config.precision, backbone.device)
    )


if __name__ == "__main__":
    main()
