"""Rates: at which learning rate does VPT-Deep learn anything?

    python -m benchmarks learning.rates plain --data DIR --models DIR
    python -m benchmarks learning.rates unit --data DIR --models DIR

`plain`: rates that are plain numbers, on one backbone.
Ten image sets, `vit_tiny_patch16_224` at 64 px, 100 training images and 100 to validate on, batch
16, ten epochs, a head that starts in closed form: eight rates of the prompt times three of the
head, every one trained to its end. What is compared is the validation accuracy after the last
epoch, which nothing was chosen by; the best epoch is told beside. The test split stays closed.

`unit`: rates in the size of the start (`lr_unit=start`) beside plain ones, on two backbones whose
starts differ in size, at the usual rate of the head. A set that is in the record is not run again.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, new_parser
from benchmarks.learning import common as learning
from benchmarks.paired import interval
from benchmarks.speed.grids import HEADS, METHOD, RATES, SETS
from vprompt import stages
from vprompt.cli import terminal
from vprompt.core.files import read_json, write_json
from vprompt.core.progress import SILENT
from vprompt.core.registry import build
from vprompt.learning.adapter import block_sizes
from vprompt.learning.grid import tune_all
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone
from vprompt.opening import open_backbone, open_task
from vprompt.results import runs

RESULT = RESULTS / "rates.json"
OF_UNITS = RESULTS / "rates_unit.json"
EPOCHS, BATCH, IMAGES = 10, 16, 100
USUAL = 0.003, 0.01  # the rates of this grid around 0.005, which was the default
HEAD = 0.001  # the default of the head


# What `unit` compares: rates and their units, the backbones, the sets and how many images of each.
POINTS = (
    ("none", 0.005),
    ("none", 0.1),
    ("start", 0.03),
    ("start", 0.1),
    ("start", 0.3),
)
BACKBONES = {"vit_tiny": 64, "demo": 70}  # pixels
UNIT_SETS = ("chars74k_digits", "bbbc039_count", "digits", "pacs", "gtsrb", "elpv4", "rsscn7")
UNIT_IMAGES = {"train": 150, "val": 300}


def main() -> None:
    """Train every rate on every set and write one JSON file."""
    parser = new_parser(__doc__)
    parser.add_argument("command", choices=["plain", "unit"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", help="another backbone, such as `tiny`")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="of `unit`")
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seed", type=int, help="of the images and their order")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _plain(options) if options.command == "plain" else _unit(options)


def _plain(options: argparse.Namespace) -> None:
    backbone, seed = learning.open_model(options), 1 if options.seed is None else options.seed
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, seed=seed)
    points = stages.grid_points(config, {"lr": RATES, "head_lr": HEADS})
    found = {
        name: trained(backbone, options.data, name, points, IMAGES, IMAGES)
        for name in options.sets or SETS
    }
    record = {
        "backbone": {"name": options.model or learning.MODEL, "fingerprint": backbone.fingerprint},
        "method": METHOD,
        "size": options.size,
        "seed": seed,
        "train": IMAGES,
        "val": IMAGES,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "sets": found,
        "machine": runs.describe_machine(backbone.device, "bf16"),
    }
    write_json(options.output or RESULT, record)


def _unit(options: argparse.Namespace) -> None:
    seed, output = 2 if options.seed is None else options.seed, options.output or OF_UNITS
    base = TrainConfig(epochs=EPOCHS, batch_size=BATCH, seed=seed)
    points = [base.model_copy(update={"lr_unit": unit, "lr": lr}) for unit, lr in POINTS]
    for name in options.backbones:
        size = BACKBONES[name]
        if name == "demo":
            backbone = open_backbone(name, image_size=size, device="cpu")
        else:
            backbone = learning.open_model(argparse.Namespace(**{**vars(options), "size": size}))
        for place in options.sets or UNIT_SETS:
            record = read_json(output) if output.is_file() else {}
            record |= {"method": METHOD, "seed": seed, "epochs": EPOCHS, "batch_size": BATCH}
            record |= UNIT_IMAGES
            own = record.setdefault("backbones", {}).setdefault(name, {"size": size, "sets": {}})
            if place not in own["sets"]:
                own["sets"][place] = trained(
                    backbone, options.data, place, points, *UNIT_IMAGES.values()
                )
                own["fingerprint"] = backbone.fingerprint
                start = build("adapters", METHOD)(backbone).prompt()
                own["sizes"] = [round(float(size), 3) for size in block_sizes(start, backbone)]
                own["machine"] = runs.describe_machine(backbone.device, "bf16")
                write_json(output, record)


def trained(
    backbone: Backbone, data: Path, name: str, points: list[TrainConfig], train: int, val: int
) -> list[dict[str, Any]]:
    """Return what every rate reaches on the validation images of a set."""
    there, config = data / name, points[0]
    whole = open_task(str(there) if there.is_dir() else name)
    task = learning.draw(whole, train, val, config.seed)
    with terminal.progress(quiet=True) as progress:
        setting = stages.prepare(backbone, task, config, None, 0, skip_bad=False, progress=progress)
        reached = tune_all(
            points,
            lambda own, _, after: stages.run_tuning(
                setting,
                build("adapters", METHOD)(backbone),
                own,
                SILENT,
                after,
                [f"{own.lr:g} {own.lr_unit}"],
            ),
            steps_per_epoch=lambda own: math.ceil(len(setting.train) / own.batch_size),
            width=8,
            halving=False,
            progress=progress,
        )
        setting.forget_checkpoints()
    print(name, flush=True)
    return [row(each.config, each.tuned.history) for each in reached if each.tuned is not None]


def row(config: TrainConfig, history: Any) -> dict[str, Any]:
    """Return what is kept of a training."""
    accuracies = [record.val_accuracy for record in history]
    return {
        "lr": config.lr,
        **({} if config.lr_unit == "none" else {"lr_unit": config.lr_unit}),
        "head_lr": config.rate_of_head,
        "start": accuracies[0],
        "last": accuracies[-1],
        "best": max(accuracies),
    }


def table() -> str:
    """Return the two tables, as far as there are results."""
    return "\n".join(text for text in (_table_of_rates(), _table_of_units()) if text)


def _table_of_units() -> str:
    """Return what every rate and unit gains over the plain rate that was usual."""
    if not OF_UNITS.is_file():
        return ""
    found = read_json(OF_UNITS)
    lines = [
        "## Rates in the size of the start",
        "",
        f"{found['method']}, {found['train']} training and {found['val']} validation images of "
        f"each set, {found['epochs']} epochs at batch {found['batch_size']} (`python -m benchmarks "
        "learning.rates unit`). Mean validation accuracy in per cent over the sets; gains over the "
        f"plain rate {POINTS[0][1]:g}, in points with 95 % intervals over the sets. In the unit "
        "`start` a rate is a share of the root mean square of the tokens of a block at the start.",
        "",
        "| backbone | rate | last epoch | gain | best epoch | gain |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in found["backbones"].items():
        sets = [
            {(each.get("lr_unit", "none"), each["lr"]): each for each in rows}
            for rows in own["sets"].values()
        ]
        for unit, rate in POINTS:
            shown = f"{rate:g}" + (" of the start" if unit == "start" else "")
            cells = [f"{name}, {own['size']} px, {len(sets)} sets", shown]
            for part in ("last", "best"):
                values = [100 * each[unit, rate][part] for each in sets]
                usual = [100 * each[POINTS[0]][part] for each in sets]
                gains = [value - base for value, base in zip(values, usual, strict=True)]
                cells += [f"{sum(values) / len(values):.1f}", interval(gains, 1)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _table_of_rates() -> str:
    """Return the mean accuracy at every rate, and what a large one gains over the usual ones."""
    if not RESULT.is_file():
        return ""
    found = read_json(RESULT)
    sets = {
        name: {each["lr"]: each for each in rows if each["head_lr"] == HEAD}
        for name, rows in found["sets"].items()
    }
    lines = [
        "## Rates at which a prompt learns",
        "",
        f"{found['method']} on {found['backbone']['name']} at {found['size']} px, "
        f"{found['train']} training and {found['val']} validation images of each of {len(sets)} "
        f"sets, {found['epochs']} epochs, the head at {HEAD:g} (`python -m benchmarks "
        "learning.rates plain`). Mean validation accuracy in per cent; gains over the mean of the "
        f"rates {USUAL[0]:g} and {USUAL[1]:g}, in points with 95 % intervals over the sets.",
        "",
        "| rate | last epoch | gain | best epoch | gain |",
        "|---|---|---|---|---|",
    ]
    for rate in RATES:
        cells = [f"{rate:g}"]
        for part in ("last", "best"):
            values = [100 * own[rate][part] for own in sets.values()]
            usual = [50 * (own[USUAL[0]][part] + own[USUAL[1]][part]) for own in sets.values()]
            gains = [value - base for value, base in zip(values, usual, strict=True)]
            cells += [f"{sum(values) / len(values):.1f}", interval(gains, 1)]
        lines.append(f"| {' | '.join(cells)} |")
    start = sum(100 * own[RATES[0]]["start"] for own in sets.values()) / len(sets)
    return "\n".join([*lines, "", f"Before any step it is {start:.1f} %."]) + "\n"


if __name__ == "__main__":
    main()
