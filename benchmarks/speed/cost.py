"""Hours of Table 1, and of a pool of 10,000 prompts for a target of 1,000,000 images.

python -m benchmarks speed.cost measure                 # this machine -> scaling/speed_*.json
python -m benchmarks speed.cost hours FILE              # hours on a machine as fast as that one
python -m benchmarks speed.cost hours FILE --devices 8  # shared out over eight of them
python -m benchmarks speed.cost hours FILE --times 50   # on one 50 times as fast: your assumption

`measure` times training steps of a prompt of 50 tokens, and features, on random weights. `hours`
counts the images that go through the network: for Table 1 as `vprompt bench run --dry-run` does,
from lists of VTAB-1k's sizes; for the pool by the formulas of docs/scale.md.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RECIPES, RESULTS, new_parser
from benchmarks.speed.timing import median_seconds
from vprompt.bench import estimate, jobs
from vprompt.bench import recipe as recipes
from vprompt.bench.estimate import Passes
from vprompt.core import registry
from vprompt.core.files import read_json, write_json
from vprompt.core.precision import autocast, resolve
from vprompt.data import vtab
from vprompt.data.task import Examples
from vprompt.learning.adapter import PromptAdapter
from vprompt.models.features import features_of
from vprompt.opening import open_backbone
from vprompt.results import runs

OUTPUT = RESULTS / "scaling"
TABLE_1 = RECIPES / "vtab1k-table1.yaml"
POOL, TARGET = 10_000, 1_000_000  # prompts, images
SCREENED, KEPT, SAMPLE, EPOCHS = 200, 64, 10_000, 10
FLOAT = 4  # bytes


def main() -> None:
    """Measure, or derive."""
    parser = new_parser(__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    measuring = parts.add_parser("measure")
    measuring.add_argument("--model", default="vit_base_patch16_224")
    measuring.add_argument("--batch", type=int, default=32)
    measuring.add_argument("--device", default="auto")
    measuring.add_argument("--output", type=Path)
    deriving = parts.add_parser("hours")
    deriving.add_argument("file", type=Path, help="what `measure` wrote")
    deriving.add_argument("--devices", type=int, default=1)
    deriving.add_argument("--times", type=float, default=1.0)
    told = parser.parse_args()
    if told.part == "measure":
        record = measure(told.model, told.batch, told.device)
        path = told.output or OUTPUT / f"speed_{told.model.split('.')[0]}_{record['device']}.json"
        write_json(path, record)
        print({key: record[key] for key in ("train_images_per_s", "forward_images_per_s")}, path)
    else:
        for line in hours(read_json(told.file), told.devices, told.times):
            print(line)


def measure(model: str, batch: int, device: str, repeats: int = 5) -> dict[str, Any]:
    """Return images per second of training steps and of features, and what a prompt weighs."""
    spec = str(registry.Spec("timm_vit", {"model": model, "pretrained": False}))
    backbone = open_backbone(spec, device=device)
    build = registry.build("adapters", "vpt(num_virtual_tokens=50, deep=False)")
    adapter: PromptAdapter = build(backbone)
    height, width = backbone.data_config.input_size[1:]
    pixels = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    examples = Examples(pixels, torch.zeros(batch, dtype=torch.int64), "random")
    pictures = torch.from_numpy(pixels).to(backbone.device)

    def step() -> None:
        with autocast("auto", backbone.device):
            features = adapter.features(backbone.normalise(pictures))
        total = features.float().square().sum()
        total.backward()
        total.item()  # waits for an accelerator

    def forward() -> None:
        features_of(backbone, adapter.prompt(), examples, batch_size=batch, use_cache=False)

    return {
        "model": model,
        "tokens": 50,
        "batch": batch,
        "feature_dim": backbone.feature_dim,
        "prompt_numbers": adapter.tokens.numel(),
        "train_images_per_s": batch / median_seconds(step, repeats),
        "forward_images_per_s": batch / median_seconds(forward, repeats),
        "device": backbone.device.type,
        "precision": resolve("auto", backbone.device),
        "machine": runs.describe_machine(backbone.device, resolve("auto", backbone.device)),
    }


def hours(speed: dict[str, Any], devices: int, times: float) -> list[str]:
    """Return a line for Table 1, and for every stage of the pool."""
    both, forward = speed["train_images_per_s"] * times, speed["forward_images_per_s"] * times
    assumed = "" if times == 1 else f", assumed to be {times:g} times as fast"
    lines = [f"{speed['model']} on {devices} x {speed['device']}{assumed}"]
    total = {"Table 1": table_1(), **pool()}
    for name, passes in total.items():
        seconds = passes.both / both + passes.forward / forward
        one = f"{seconds / 3600:,.2f} h on one"
        lines.append(f"{name:<28} {passes.both:>14,} both, {passes.forward:>14,} forward: {one}")
        if devices > 1:
            lines[-1] += f", {seconds / 3600 / devices:,.2f} h on {devices}"
    width = speed["feature_dim"]
    gradients = POOL * speed["prompt_numbers"] * FLOAT
    features = POOL * SCREENED * width * FLOAT, KEPT * SAMPLE * width * FLOAT
    lines += [
        f"features of the screened pool {features[0] / 1e9:.1f} GB, of what is kept "
        f"{features[1] / 1e9:.1f} GB; the pool's prompts {gradients / 1e9:.1f} GB",
    ]
    return lines


def table_1() -> Passes:
    """Return the images through the network for the recipe of Table 1."""
    read = recipes.read(TABLE_1)
    with tempfile.TemporaryDirectory() as folder:
        for entry in read.tasks:
            _lists(Path(folder), entry.name)
        every = jobs.expand(read, data=Path(folder), output=Path(folder, "out"))
        return estimate.total(estimate.count(every))


def pool() -> dict[str, Passes]:
    """Return the images of every stage for a large pool and a large target, and of doing it all."""
    return {
        "screen 10,000 prompts": Passes(0, POOL * SCREENED),
        "evidence of 64 prompts": Passes(KEPT * SAMPLE, SAMPLE),
        "tune on 1,000,000 images": Passes(EPOCHS * TARGET, TARGET),
        "instead: all on all": Passes(POOL * TARGET, 0),
    }


def _lists(root: Path, name: str) -> None:
    """Write lists of VTAB-1k's sizes that name one picture of every class; none is opened."""
    task = vtab.find(name)
    assert task is not None
    folder = root / name
    (folder / "images").mkdir(parents=True)
    for label in range(task.classes):
        (folder / "images" / f"{label}.png").touch()
    sizes = {"train800": vtab.TRAIN, "val200": vtab.VAL, "test": task.test_images[0]}
    for split, size in sizes.items():
        rows = (f"images/{row % task.classes}.png {row % task.classes}\n" for row in range(size))
        (folder / f"{split}.txt").write_text("".join(rows))


if __name__ == "__main__":
    main()
