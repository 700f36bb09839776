"""Learn the demonstration pool and compare every prompt with the linear probe of its features.

    python -m benchmarks pools.demo --data DIR --pool pools/demo
    python -m benchmarks pools.demo --data DIR --pool pools/mini --image-size 70 --methods vpt

    python -m benchmarks pools.demo --data DIR --pool pools/placed --image-size 70 --methods pro_vpt

The second line learns the smaller pool of the mini benchmark, the third one of prompts that moved.

Every set is learned with the defaults of `vprompt learn`. The artefacts of seed 0 go into the pool;
one JSON record per run goes into `benchmarks/results`, and what exists there is not run again. The
demonstration's own target, ELPV, is not among the sets unless `--sets elpv4` names it.
"""

import json
from pathlib import Path

from benchmarks import new_parser
from benchmarks.pools.demo_table import RECORDS
from vprompt import flow
from vprompt.artifacts.artifact import save
from vprompt.cli import terminal
from vprompt.core import registry
from vprompt.learning.train_config import TrainConfig

SETS = [
    "gtsrb",
    "rsscn7",
    "caltech101",
    "oxford_flowers17",
    "oxford_pets3",
    "chars74k_digits",
    "coil20",
    "dtd10",
    "pacs",
    "cifar100",
    "omniglot100",
    "bbbc039_count",
]
# Not a source of the demonstration, whose target it is, but one of the comparison of methods.
EXTRA = "elpv4"


def main() -> None:
    """Run what is missing, one run after the other."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--pool", type=Path, required=True, help="where the artefacts go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sets", nargs="+", default=SETS, choices=[*SETS, EXTRA])
    parser.add_argument("--methods", nargs="+", default=["vpt", "linear"])
    parser.add_argument("--image-size", type=int, help="default: the backbone's own")
    options = parser.parse_args()
    for seed in options.seeds:
        for name in options.sets:
            for method in options.methods:
                config = TrainConfig(seed=seed)
                run_one(options.data / name, method, config, options.pool, options.image_size)


def run_one(
    folder: Path, method: str, config: TrainConfig, pool: Path, image_size: int | None
) -> None:
    """Learn one set with one method and one seed, unless its record is there."""
    label = registry.parse(method).name
    size = f"_{image_size}px" if image_size else ""
    record = f"{folder.name}_{label}{size}_seed{config.seed}"
    artefact = pool / folder.name
    keep = label in ("vpt", "pro_vpt") and config.seed == 0
    if record in RECORDS and (artefact.is_dir() or not keep):
        return
    with terminal.progress(quiet=False) as progress:
        progress.say(f"{folder.name}, {method}, {config.epochs} epochs, seed {config.seed}")
        outcome = flow.learn(
            str(folder), method=method, config=config, image_size=image_size, progress=progress
        )
        progress.say(json.dumps({k: round(m.acc1, 4) for k, m in outcome.test.items()}))
    if keep:
        save(outcome.artifact, artefact, overwrite=True, run=outcome.run)
    RECORDS.write(record, outcome.run)


if __name__ == "__main__":
    main()
