"""Rates: at which learning rate does VPT-Deep learn anything?

    python -m benchmarks learning.rates --data DIR --models DIR

Ten image sets, `vit_tiny_patch16_224` at 64 px, 100 training images and 100 to validate on, batch
16, ten epochs, a head that starts in closed form: eight rates of the prompt times three of the
head, every one trained to its end. What is compared is the validation accuracy after the last
epoch, which nothing was chosen by; the best epoch is told beside. The test split stays closed.
"""

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
from vprompt.learning.grid import tune_all
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone
from vprompt.opening import open_task
from vprompt.results import runs

RESULT = RESULTS / "rates.json"
EPOCHS, BATCH, IMAGES = 10, 16, 100
USUAL = 0.003, 0.01  # the rates of this grid around the default, 0.005
HEAD = 0.001  # the default of the head


def main() -> None:
    """Train every rate on every set and write one JSON file."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", help="another backbone, such as `tiny`")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seed", type=int, default=1, help="of the images and their order")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = learning.open_model(options)
    found = {name: trained(backbone, options.data, name, options.seed) for name in options.sets}
    record = {
        "backbone": {"name": options.model or learning.MODEL, "fingerprint": backbone.fingerprint},
        "method": METHOD,
        "size": options.size,
        "seed": options.seed,
        "train": IMAGES,
        "val": IMAGES,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "sets": found,
        "machine": runs.describe_machine(backbone.device, "bf16"),
    }
    write_json(options.output, record)


def trained(backbone: Backbone, data: Path, name: str, seed: int) -> list[dict[str, Any]]:
    """Return what every rate reaches on the validation images of a set."""
    there = data / name
    whole = open_task(str(there) if there.is_dir() else name)
    task = learning.draw(whole, IMAGES, IMAGES, seed)
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, seed=seed)
    points = stages.grid_points(config, {"lr": RATES, "head_lr": HEADS})
    with terminal.progress(quiet=True) as progress:
        setting = stages.prepare(backbone, task, config, None, 0, skip_bad=False, progress=progress)
        reached = tune_all(
            points,
            lambda own, _, after: stages.run_tuning(
                setting, build("adapters", METHOD)(backbone), own, SILENT, after, [f"{own.lr:g}"]
            ),
            steps_per_epoch=lambda own: math.ceil(len(setting.train) / own.batch_size),
            width=8,
            halving=False,
            progress=progress,
        )
        setting.forget_checkpoints()
    print(name, flush=True)
    return [
        row(each.config.lr, each.config.rate_of_head, each.tuned.history)
        for each in reached
        if each.tuned is not None
    ]


def row(lr: float, head_lr: float, history: Any) -> dict[str, float]:
    """Return what is kept of a training."""
    accuracies = [record.val_accuracy for record in history]
    return {
        "lr": lr,
        "head_lr": head_lr,
        "start": accuracies[0],
        "last": accuracies[-1],
        "best": max(accuracies),
    }


def table() -> str:
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
        "learning.rates`). Mean validation accuracy in per cent; gains over the mean of the rates "
        f"{USUAL[0]:g} and {USUAL[1]:g}, in points with 95 % intervals over the sets.",
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
