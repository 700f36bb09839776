"""Learn the sources of `pools.few_shot`: one prompt for every task, the last epoch kept.

    python -m benchmarks pools.sources --data DIR --models DIR --backbone vit_tiny \
        --output pools --part 0/2

A prompt is there to be used by others, so training goes on until the training loss stops falling
and the last epoch is kept: the epoch that is best on the source's own validation images is often
the first, and such a prompt carries nothing. `--part 0/2` learns every second task.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.pools import data
from vprompt import flow, stages
from vprompt.cli import terminal
from vprompt.learning.train_config import TrainConfig

EPOCHS = 30
METHOD = "vpt(num_virtual_tokens=10)"


def main() -> None:
    """Learn what is missing, one prompt after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of weights")
    parser.add_argument("--backbone", choices=data.BACKBONES, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the pools")
    parser.add_argument("--families", nargs="+", default=[f.name for f in data.FAMILIES])
    parser.add_argument("--without", nargs="*", default=[], help="tasks that are left out")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    usual = stages.training_defaults(METHOD)
    parser.add_argument("--lr", type=float, default=usual["lr"], help="rate of the prompt")
    parser.add_argument("--lr-unit", default=usual["lr_unit"], help="`start`, or `none`")
    parser.add_argument("--test", action="store_true", help="measure on the test splits, for cards")
    parser.add_argument("--part", default="0/1", help="which of how many parts of the tasks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = data.backbone(options.backbone, options.models)
    names = [
        name
        for family in data.FAMILIES
        if family.name in options.families
        for name in family.members
        if name not in options.without
    ]
    part, parts = (int(number) for number in options.part.split("/"))
    for name in names[part::parts]:
        folder = options.output / name
        if folder.is_dir():
            continue
        with terminal.progress(quiet=True) as progress:
            outcome = flow.learn(
                data.task(name, options.data),
                model=backbone,
                method=METHOD,
                config=TrainConfig(
                    epochs=options.epochs,
                    batch_size=32,
                    keep="last",
                    lr=options.lr,
                    lr_unit=options.lr_unit,
                ),
                output=folder,
                test=options.test,
                progress=progress,
            )
        losses = [record["train_loss"] for record in outcome.run["tuning"]["history"]]
        seconds = round(outcome.run["seconds"]["tune"], 1)
        print(json.dumps({"source": name, "losses": losses[1::5], "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
