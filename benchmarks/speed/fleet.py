"""Fleet: many prompts trained in one pass against the same trainings one after the other.

python -m benchmarks speed.fleet --members 16 --batch 16 --threads 2
python -m benchmarks speed.fleet --small  # a trial of the script and not a measurement

Both are the real training loop on images of noise, in turn in one process: the fleet, and the same
members alone. Written are wall time and, because it hardly depends on what else runs, processor
time; and by how much memory each rises. `results/speed/fleet-DEVICE.json` keeps them.
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RESULTS, new_parser
from benchmarks.speed.timing import machine, settle, spread
from vprompt.core import fleet, registry
from vprompt.core.files import write_json
from vprompt.data.task import Examples
from vprompt.learning import fleet_size
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import Tuned, tune
from vprompt.models.backbone import Backbone
from vprompt.opening import open_backbone

CLASSES = 10


def main() -> None:
    """Compare a fleet with its members alone, and write the record."""
    options = parse()
    torch.set_num_threads(options.threads)
    backbone = open_backbone(options.model, image_size=options.image_size)
    found = compare(
        backbone,
        members=options.members,
        widths=options.widths,
        batch=options.batch,
        steps=options.steps,
        rounds=options.rounds,
        method=options.method,
    )
    record = {**found, "threads": options.threads, "machine": machine()}
    write_json(options.output / f"fleet-{backbone.device.type}.json", record)
    print({key: value for key, value in record.items() if key != "machine"})


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny model, few steps")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--image-size", type=int, default=70)
    parser.add_argument("--method", default="vpt")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "speed")
    options = parser.parse_args()
    if options.small:
        options.model, options.image_size, options.members = "tiny", 32, 4
        options.steps, options.rounds, options.batch, options.widths = 2, 2, 4, [2, 4]
    return options


def compare(
    backbone: Backbone,
    *,
    members: int,
    widths: Sequence[int],
    batch: int,
    steps: int,
    rounds: int,
    method: str = "vpt",
) -> dict[str, Any]:
    """Return seconds of a fleet and of its members in turn, round by round, and their ratios.

    `widths` are the members in one pass, in rising order.
    """
    works = trainings(backbone, members=members, batch=batch, steps=steps, method=method)
    actions: dict[str, Callable[[], Any]] = {"in turn": lambda: [work() for work in works]}
    for width in widths:
        actions[f"{width} in one pass"] = lambda k=width: fleet.run(works, width=k)  # type: ignore[misc]
    wall: dict[str, list[float]] = {name: [] for name in actions}
    processor: dict[str, list[float]] = {name: [] for name in actions}
    memory: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            before, began = time.process_time(), time.perf_counter()
            action()
            settle()
            spent = time.perf_counter() - began, time.process_time() - before
            if turn:
                wall[name].append(spent[0])
                processor[name].append(spent[1])
            else:
                memory[name] = _peak_mb(backbone.device)
    first, *others = actions
    ratios = {
        kind: {
            name: spread([a / b for a, b in zip(times[first], times[name], strict=True)])
            for name in others
        }
        for kind, times in (("wall", wall), ("processor", processor))
    }
    images = members * batch * steps
    return {
        "model": backbone.name,
        "members": members,
        "auto": fleet_size.enough(batch, backbone.device),
        "batch": batch,
        "steps": steps,
        "method": method,
        "wall_seconds": {name: spread(times) for name, times in wall.items()},
        "processor_seconds": {name: spread(times) for name, times in processor.items()},
        "images_per_second": {n: images / spread(t)["median"] for n, t in wall.items()},
        "times_as_fast": ratios,
        "peak_mb_after_each": memory,  # never falls, so a later one shows what it adds
    }


def trainings(
    backbone: Backbone, *, members: int, batch: int, steps: int, method: str
) -> list[Callable[[], Tuned]]:
    """Return trainings of one epoch at other rates and of other images, each from the start."""
    height, width = backbone.data_config.input_size[1:]

    def one(row: int) -> Callable[[], Tuned]:
        rng = np.random.default_rng(row)
        pixels = rng.integers(0, 256, (batch * steps, height, width, 3), dtype=np.uint8)
        labels = torch.from_numpy(rng.integers(0, CLASSES, batch * steps))
        train = Examples(pixels, labels, f"noise {row}")
        config = TrainConfig(
            epochs=1, batch_size=batch, head="zero", keep="last", lr=1e-3 * (1 + row), seed=row
        )

        def work() -> Tuned:
            adapter = registry.build("adapters", method)(backbone)
            return tune(adapter, train, None, CLASSES, config)

        return work

    return [one(row) for row in range(members)]


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
