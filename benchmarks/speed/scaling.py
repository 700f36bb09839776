"""Speed-up of a benchmark of eight runs on several workers of one processor each, over one.

python -m benchmarks speed.scaling --executor processes   # results/scaling/processes.json
python -m benchmarks speed.scaling --executor ray         # results/scaling/ray.json
python -m benchmarks speed.scaling --executor processes --tiny --output it.json  # does it work?

Both sides start from empty caches and with fresh workers, whose start is part of the time. The
results of all runs have to be the same to the last bit.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, new_parser
from vprompt.bench import executors, jobs, runner
from vprompt.bench.calls import available_cpus
from vprompt.bench.recipe import BenchRecipe, from_values
from vprompt.bench.store import Store
from vprompt.core.files import write_json
from vprompt.results import runs

OUTPUT = RESULTS / "scaling"
TARGET = 1.7  # on two workers
FULL = {
    "name": "scaling",
    "backbone": {"model": "demo", "image_size": 70},
    "train": {"epochs": 5},
    "shots": 20,
    "seeds": [0, 1, 2, 3],
    "tasks": [
        {"name": "location", "data": "dsprites(target=location)"},
        {"name": "digits", "data": "digits"},
    ],
    "methods": [{"name": "VPT", "learn": "vpt(num_virtual_tokens=10)"}],
}
TINY = {"backbone": {"model": "tiny", "image_size": 32}, "train": {"epochs": 1}, "seeds": [0]}


def main() -> None:
    """Time both sides and write the record."""
    parser = new_parser(__doc__)
    parser.add_argument("--executor", choices=("processes", "ray"), default="processes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tiny", action="store_true")
    told = parser.parse_args()
    recipe = from_values({**FULL, **(TINY if told.tiny else {})}, where=__file__)
    sides = {count: time_side(recipe, told.executor, count) for count in (1, told.workers)}
    seconds = {str(count): spent for count, (spent, _) in sides.items()}
    results = [accuracies for _, accuracies in sides.values()]
    record = {
        "executor": told.executor,
        "recipe": recipe.model_dump(mode="json"),
        "runs": len(results[0]),
        "seconds_by_workers": seconds,
        "speed_up": seconds["1"] / seconds[str(told.workers)],
        "target": TARGET if told.workers == 2 else None,
        "same_results": results[0] == results[1],
        "processors": available_cpus(),
        "machine": runs.describe_machine(torch.device("cpu"), "auto"),
    }
    write_json(told.output or OUTPUT / f"{told.executor}.json", record)
    print({key: record[key] for key in ("runs", "seconds_by_workers", "speed_up", "same_results")})


def time_side(recipe: BenchRecipe, name: str, workers: int) -> tuple[float, dict[str, Any]]:
    """Return the seconds of the whole benchmark, and the curve and accuracy of every run."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VPROMPT_CACHE"] = str(Path(folder, "cache"))
        store = Store(Path(folder, "out"))
        every = jobs.expand(recipe, data=None, output=store.folder, device="cpu")
        executor = executors.build(name, workers=workers, num_cpus=1, num_gpus=0.0)
        began = time.perf_counter()
        report = runner.run(every, store, executor=executor)
        spent = time.perf_counter() - began
        assert len(report.done) == len(every), report
        records = {key: store.read(key) for key in store.finished()}
    return round(spent, 2), {
        key: (record["tuning"]["history"], record["test"]["learned"]["acc1"])
        for key, record in records.items()
    }


if __name__ == "__main__":
    main()
