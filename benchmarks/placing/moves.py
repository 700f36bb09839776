"""Does it help to move tokens between blocks? PRO-VPT against VPT-Deep and against its controls.

    python -m benchmarks placing.moves rates --data DIR    # learning rates, on val200 alone
    python -m benchmarks placing.moves choose --data DIR   # variants of robust, on val200 alone
    python -m benchmarks placing.moves compare --data DIR  # all arms, one budget, test opened once
    python -m benchmarks placing.moves scores --data DIR   # every score against exact ablation
    python -m benchmarks placing.moves cost --data DIR     # seconds per epoch over VPT-Deep
    python -m benchmarks placing.moves carry --data DIR --pool pools/mini --placed pools/placed

Six targets, three draws of about 200 training images, backbone `demo` at 70 px. `rates` tries three
learning rates with plain VPT-Deep on the first draw of a target; the best on val200 is that of
every arm of `compare` there, which can only favour VPT-Deep. All train for as many epochs (one arm
for twice as many) and keep the last one: with so few images many runs would keep the epoch before
any training, and all arms would be one. `carry` combines a pool of VPT prompts and
one of prompts that moved, on three targets. What is in `results/placing` is not run again; the
tables are written by `python -m benchmarks tables`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import new_parser
from benchmarks.placing import cost as placing_cost
from benchmarks.placing.scores import look
from benchmarks.placing.tables import RECORDS
from benchmarks.transfer.methods import TARGETS
from vprompt import flow, outcome, stages
from vprompt.cli import terminal
from vprompt.core import registry
from vprompt.core.precision import resolve
from vprompt.learning import classifier
from vprompt.learning.adapter import Training
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import Tuned
from vprompt.opening import open_backbone, open_task
from vprompt.results import measure, runs
from vprompt.results.records import Records

SIZE = 70  # pixels
CARRIED = ("cifar100", "dtd10", "rsscn7")
RATES = [0.001, 0.002, 0.005]
BATCH = 16  # thirteen steps an epoch
STATIC = "static"
# Every arm: its method and how many times the epochs it gets.
ARMS: dict[str, tuple[str, int]] = {
    "vpt": ("vpt", 1),
    "vpt_twice": ("vpt", 2),
    "vpt_paper_start": ("vpt(prompt_init=vpt_uniform, prompt_dropout=0.1)", 1),
    "paper": ("pro_vpt(preset=paper, num_virtual_tokens=10)", 1),
    "robust": ("pro_vpt", 1),
    "random_destination": ("pro_vpt(alloc=random)", 1),
    "in_place": ("pro_vpt(alloc=none)", 1),
    "random_leaver": ("pro_vpt(score=random, accept=always)", 1),
    STATIC: ("vpt", 1),  # with the counts at which `robust` ended
    "taylor_norm": ("pro_vpt(score=taylor_norm)", 1),
}
# What `robust` might be, chosen on val200 alone.
VARIANTS = {
    "vpt": "vpt",
    "explore": "pro_vpt(explore=True)",
    "blank": "pro_vpt(explore=False)",
    "blank, 4 moves": "pro_vpt(explore=False, moves_per_epoch=4)",
    "keep": "pro_vpt(move_init=keep)",
    "early": "pro_vpt(window=[0.1, 0.4], moves_per_epoch=4)",
}


def main() -> None:
    """Run what is missing, one target and draw after the other."""
    parser = new_parser(__doc__)
    parser.add_argument("phase", choices=tuple(PHASES))
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=64, help="of a training set, for `scores`")
    parser.add_argument("--pool", type=Path, help="prompts of VPT, for `carry`")
    parser.add_argument("--placed", type=Path, help="prompts that moved, for `carry`")
    parser.add_argument("--results", type=Records, default=RECORDS, help="folder of the records")
    options = parser.parse_args()
    PHASES[options.phase](options)


class Bench:
    """One target and one draw of its training images; val200 whole, the test split closed."""

    def __init__(
        self, options: argparse.Namespace, target: str, seed: int, size: int = SIZE
    ) -> None:
        self.target, self.seed, self.options, self.size = target, seed, options, size
        self.config = TrainConfig(epochs=options.epochs, batch_size=BATCH, keep="last", seed=seed)
        self.backbone = open_backbone("demo", image_size=size)
        self.whole = open_task(str(options.data / target))
        drawn = replace(self.whole.few_shot(TARGETS[target], seed), val=self.whole.val)
        with terminal.progress(quiet=True) as progress:
            self.setting = stages.prepare(
                self.backbone, drawn, self.config, None, 0, skip_bad=False, progress=progress
            )

    def build(self, method: str) -> Callable[[], Any]:
        """Return a builder of the method, with its start drawn from this seed."""
        spec = registry.parse(method)
        if "prompt_init_seed" in registry.settings("adapters", spec.name):
            spec = registry.Spec(spec.name, {"prompt_init_seed": self.seed, **spec.settings})
        return lambda: registry.build("adapters", spec)(self.backbone)

    def record(self, **found: Any) -> dict[str, Any]:
        """Add what a sceptical reader would ask for."""
        setting, device = self.setting, self.backbone.device
        splits = {"train": setting.train, "val": setting.val}
        return {
            "target": self.target,
            "seed": self.seed,
            "shots": TARGETS[self.target],
            "image_size": self.size,
            "task": runs.describe_task(setting.task, splits),
            "backbone": runs.describe_backbone(self.backbone),
            "machine": runs.describe_machine(device, resolve("auto", device)),
            **found,
        }


def rates(options: argparse.Namespace) -> None:
    """Choose the learning rate of every target with plain VPT-Deep, on the first draw."""
    for target in options.targets:
        name = _rated(options, target)
        if name in options.results:
            continue
        bench = Bench(options, target, options.seeds[0])
        points = stages.grid_points(bench.config, {"lr": RATES})
        _, chosen, reached = stages.tune_best(bench.setting, bench.build("vpt"), points)
        bench.setting.forget_checkpoints()
        options.results.write(name, bench.record(method="vpt", lr=chosen.lr, reached=reached))
        print(name, chosen.lr, [point["val_accuracy"] for point in reached], flush=True)


def _rated(options: argparse.Namespace, target: str) -> str:
    return f"rates_{target}_epochs{options.epochs}"


def compare(options: argparse.Namespace) -> None:
    """Train every arm on every target and draw, and measure each once."""
    for seed in options.seeds:
        for target in options.targets:
            bench = None
            for arm in options.arms:
                name = _compared(options, arm, target, seed)
                if name in options.results:
                    continue
                bench = bench or Bench(options, target, seed)
                began = time.perf_counter()
                found = _compare(bench, arm)
                found["seconds"] = round(time.perf_counter() - began, 1)
                options.results.write(name, found)
                print(name, found["acc1"], f"{found['seconds']} s", flush=True)


def _compared(options: argparse.Namespace, arm: str, target: str, seed: int) -> str:
    return f"compare_{target}_{arm}_epochs{options.epochs}_seed{seed}"


def choose(options: argparse.Namespace) -> None:
    """Train variants of `robust` and say what they reach on val200; the test split stays closed."""
    for seed in options.seeds:
        for target in options.targets:
            bench = None
            for variant, method in VARIANTS.items():
                label = variant.replace(", ", "_").replace(" ", "_")
                name = f"choose_{target}_{label}_seed{seed}"
                if name in options.results:
                    continue
                bench = bench or Bench(options, target, seed)
                tuned, config = _train(bench, method)
                bench.setting.forget_checkpoints()
                accuracy, loss = _validate(bench, tuned)
                found = {
                    "variant": variant,
                    "method": method,
                    "train": config.model_dump(),
                    "train_loss": tuned.record(tuned.kept_epoch).train_loss,
                    "val_accuracy": accuracy,
                    "val_loss": loss,
                    "placement": tuned.adapter.memory.get("placement"),
                }
                options.results.write(name, bench.record(**found))
                print(name, accuracy, loss, flush=True)


def _train(bench: Bench, method: str, factor: int = 1) -> tuple[Tuned, TrainConfig]:
    """Train at the target's rate, for `factor` times the epochs; nothing is chosen on the way."""
    rated = _rated(bench.options, bench.target)
    if rated not in bench.options.results:
        raise SystemExit(f"This needs {rated}: run `rates` first.")
    config = bench.config.model_copy(
        update={
            "epochs": factor * bench.options.epochs,
            "lr": bench.options.results.read(rated)["lr"],
        }
    )
    unseen = replace(bench.setting, val=None)  # so val200 is read once, afterwards
    return stages.run_tuning(unseen, bench.build(method)(), config), config


def _compare(bench: Bench, arm: str) -> dict[str, Any]:
    """Train one arm at the target's rate, and open the test split once."""
    method, factor = ARMS[arm]
    if arm == STATIC:
        name = _compared(bench.options, "robust", bench.target, bench.seed)
        if name not in bench.options.results:
            raise SystemExit(f"{STATIC} needs {name}: run the arm `robust` first.")
        moved = bench.options.results.read(name)["placement"]["distribution"][-1]
        method = f"vpt(num_virtual_tokens={moved})"
    tuned, config = _train(bench, method, factor)
    candidates = {arm: (tuned.adapter, tuned.head)}
    measured = measure.test_accuracy(bench.backbone, bench.whole, candidates)[arm]
    bench.setting.forget_checkpoints()
    val_accuracy, val_loss = _validate(bench, tuned)
    return bench.record(
        arm=arm,
        method=method,
        train=config.model_dump(),
        acc1=measured.acc1,
        test=measured.to_json(),
        val_accuracy=val_accuracy,
        val_loss=val_loss,
        tuning=runs.describe_tuning(tuned, outcome.RULES["last"]),
        placement=tuned.adapter.memory.get("placement"),
    )


def _validate(bench: Bench, tuned: Tuned) -> tuple[float, float]:
    """Return accuracy and log-loss on val200."""
    val = bench.setting.val
    assert val is not None
    logits = tuned.head.logits(classifier.features_of(bench.backbone, tuned.adapter.prompt(), val))
    loss = torch.nn.functional.cross_entropy(logits.double(), val.labels)
    return measure.judge(logits, val.labels).acc1, loss.item()


def score(options: argparse.Namespace) -> None:
    """Compare every score with exact ablation, at the start, in the middle and at the end."""
    for seed in options.seeds:
        for target in options.targets:
            for start in ("blank", "vpt_uniform"):
                name = f"scores_{target}_{start}_epochs{options.epochs}_seed{seed}"
                if name in options.results:
                    continue
                bench = Bench(options, target, seed)
                found = _watch(bench, start)
                options.results.write(name, found)
                brief = {
                    when: values["spearman"]["mask"] for when, values in found["found"].items()
                }
                print(name, json.dumps(brief), flush=True)


def _watch(bench: Bench, start: str) -> dict[str, Any]:
    """Train plain deep tokens, and look at all scores three times on the way."""
    method = f"pro_vpt(moves_per_epoch=0, prompt_init={start}, prompt_dropout=0.0)"
    adapter, found = bench.build(method)(), {}
    begin, end, epochs = adapter.begin_epoch, adapter.end_epoch, bench.options.epochs
    images = bench.options.images

    def before(training: Training) -> None:
        begin(training)
        if training.epoch in (1, epochs // 2 + 1):
            when = "start" if training.epoch == 1 else "middle"
            found[when] = look(adapter, training, images)

    def after(training: Training) -> None:
        end(training)
        if training.epoch == epochs:
            found["end"] = look(adapter, training, images)

    adapter.begin_epoch, adapter.end_epoch = before, after
    # In bf16 the loss itself is rounded more coarsely than most tokens change it.
    config = bench.config.model_copy(update={"keep": "last", "precision": "fp32"})
    stages.run_tuning(bench.setting, adapter, config)
    bench.setting.forget_checkpoints()
    return bench.record(
        method=method, start=start, images=images, train=config.model_dump(), found=found
    )


def cost(options: argparse.Namespace) -> None:
    """Time the epochs of VPT-Deep and of both presets on the first target."""
    placing_cost.measure(Bench(options, options.targets[0], options.seeds[0]), options.results)


def carry(options: argparse.Namespace) -> None:
    """Combine a pool of prompts that never moved, and one that did, with the same method."""
    pools = {"vpt": (options.pool, None), "placed": (options.placed, "placement")}
    if None in (options.pool, options.placed):
        raise SystemExit("carry needs --pool and --placed; `pools.demo` learns both.")
    both = set.intersection(*({f.name for f in pool.iterdir()} for pool, _ in pools.values()))
    for target in options.targets if len(options.targets) < len(TARGETS) else CARRIED:
        for seed in options.seeds:
            for kind, (pool, align) in pools.items():
                name = f"carry_{target}_{kind}_seed{seed}"
                if name in options.results:
                    continue
                with terminal.progress(quiet=True) as progress:
                    outcome = flow.combine(
                        str(options.data / target),
                        pool=pool,
                        method="hgprompt",
                        shots=TARGETS[target],
                        draw=seed,
                        align=align,
                        exclude=tuple(sorted(f.name for f in pool.iterdir() if f.name not in both)),
                        progress=progress,
                    )
                summary = {key: value.acc1 for key, value in outcome.test.items()}
                found = {"target": target, "seed": seed, "pool": kind, "summary": summary}
                found["run"] = _without_places(outcome.run, options.data, pool)
                options.results.write(name, found)
                print(name, json.dumps(summary), flush=True)


def _without_places(run: dict[str, Any], *folders: Path) -> dict[str, Any]:
    """Return a record without the folders in which this computer keeps images and pools."""
    text = json.dumps(run)
    for folder in folders:
        text = text.replace(f"{folder.parent}/", "")
    return dict(json.loads(text))


PHASES = {
    "rates": rates,
    "choose": choose,
    "compare": compare,
    "scores": score,
    "cost": cost,
    "carry": carry,
}

if __name__ == "__main__":
    main()
