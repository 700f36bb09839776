"""What is a pool of prompts worth to a task with few images? Nothing here is tuned.

    python -m benchmarks pools.few_shot run --data DIR --models DIR --pools DIR \
        --backbone vit_tiny --part 0/2
    python -m benchmarks pools.few_shot table

Every row is a closed-form head on features that a prompt makes of 1, 2, 5 and 10 training images a
class, measured on test images. Features are kept by prompt and image, so rows, draws and shots that
share a prompt share one pass. Selection sees the drawn training images alone. One record for every
target, shots and draw; what is there is not run again.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.pools import data
from vprompt.artifacts import artifact, origin
from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.moves import Moves
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.linalg import centred_cosine
from vprompt.core.precision import resolve
from vprompt.core.progress import SILENT
from vprompt.core.randomness import stream
from vprompt.core.types import Features, Weights
from vprompt.data.task import SealedSplit, Split, Task, split_by_sizes
from vprompt.learning import ensemble
from vprompt.learning.classifier import Candidate
from vprompt.learning.train_config import TrainConfig
from vprompt.models import heldout
from vprompt.models.backbone import Backbone
from vprompt.models.features import features_of
from vprompt.models.heads import closed_form
from vprompt.models.heldout import HeldOut
from vprompt.pooling import moving, scale_path
from vprompt.pooling.combining import gather_evidence, weigh_sources
from vprompt.pooling.mix import Mix, plan_of
from vprompt.pooling.scale_path import ALIKE, LADDER, LEAST, Point, ScalePath
from vprompt.prompts.prompt import Prompt, prompt_digest
from vprompt.results import measure, runs
from vprompt.results.records import Records
from vprompt.stages import Setting, prepare

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "few-shot-pools"
SHOTS, DRAWS = (1, 2, 5, 10), 5
COMPARED = (2, 5), 3  # shots, and how many draws, at which all methods are compared
ROBUST = "moves, untuned"  # what `combine` does by default: even weights, the form that is better
TESTED = 300  # test images of a target at most, drawn class by class

# Methods that weigh sources, by what they are called in the tables. Each gives a published convex
# sum and, with the free scale, a sum of moves in the same direction.
METHODS = {
    "uniform": "uniform",
    "hscore": "hgprompt(bootstrap=30)",
    "aligned": "hgprompt(score=trace_ratio, alignment=uniform, bootstrap=0)",
    "best": "best",
    "panda": "panda",
    "spot": "spot(epochs=3)",
}


def main() -> None:
    """Run what is missing, or print the table of what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["run"])
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of weights")
    parser.add_argument("--pools", type=Path, required=True, help="folder of the sources")
    parser.add_argument("--backbone", choices=data.BACKBONES, required=True)
    parser.add_argument("--targets", nargs="+", default=[*data.TARGETS])
    parser.add_argument("--shots", type=int, nargs="+", default=[*SHOTS])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--part", default="0/1", help="which of how many parts of the targets")
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
    records = Records(options.output / options.backbone)
    for name in options.targets[part::parts]:
        pool = Pool.open(name, backbone, options.pools)
        task = data.task(name, options.data)
        task = limited(task, TESTED) if options.on == "test" else set_aside(task, TESTED)
        for shots in options.shots:
            if shots >= max(2, smallest_class(task)) and shots > 1:
                continue
            for draw in range(options.draws):
                run = f"{name}_{shots}shots_draw{draw}"
                kept = records.read(run) if run in records else None
                if kept is not None and ROBUST in kept["accuracy"]:
                    continue
                began = time.perf_counter()
                few = kept is None and shots in COMPARED[0] and draw < COMPARED[1]
                methods = options.methods if few else ["uniform"]
                record = run_one(pool, task, shots, draw, methods, controls=few)
                record |= {"backbone": options.backbone, "seconds": time.perf_counter() - began}
                records.write(run, record if kept is None else joined(kept, record))
                print(json.dumps({"run": run, "seconds": round(record["seconds"], 1)}), flush=True)


def joined(kept: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the rows that it lacked; both must be of the same images."""
    assert kept["digest"] == record["digest"], "the images of this run have changed"
    parts = ("accuracy", "facts", "weights")
    return record | kept | {name: record[name] | kept[name] for name in parts}


class Pool:
    """The sources of a target on one backbone, and their moves."""

    def __init__(self, backbone: Backbone, target: str, sources: list[Artifact], related: bool):
        self.backbone, self.target, self.sources, self.related = backbone, target, sources, related
        self.moves, _ = origin.moves_of(sources, backbone)

    @classmethod
    def open(cls, target: str, backbone: Backbone, folder: Path) -> "Pool":
        """Load every member of the target's family but the target itself."""
        family = data.family_of(target)
        names = [name for name in family.members if name != target]
        return cls(backbone, target, [artifact.load(folder / n) for n in names], family.related)


def limited(task: Task, count: int) -> Task:
    """Return the task with at most `count` test images, as even over the classes as they are."""

    def cut(split: Split) -> Split:
        if len(split) <= count:
            return split
        generator = stream(0, f"test images of {task.name}")
        order = torch.randperm(len(split), generator=generator).tolist()
        seen: dict[int, int] = {}
        ranked = []
        for row in order:
            label = split.labels[row]
            seen[label] = seen.get(label, 0) + 1
            ranked.append((seen[label], row))
        rows = sorted(row for _, row in sorted(ranked)[:count])
        return split.subset(rows, f"{split.name}, {count} of it")

    assert task.test is not None
    return replace(task, test=task.test.cut(cut))


def set_aside(task: Task, count: int) -> Task:
    """Return the task with training images in the place of test images, which stay closed.

    They are `count` at most, and never more than a half.
    """
    rows = range(len(task.train))
    count = min(count, len(rows) // 2)
    sizes = [len(rows) - count, count]
    left, aside, _ = split_by_sizes(task.train.labels, sizes, 0, f"set aside of {task.name}")
    train, held = task.train.subset(left, "train, less"), task.train.subset(aside, "set aside")
    return replace(task, train=train, test=SealedSplit(held))


def smallest_class(task: Task) -> int:
    """Return how many training images the smallest class has."""
    return min(task.class_counts())


def run_one(
    pool: Pool, task: Task, shots: int, draw: int, methods: list[str], *, controls: bool
) -> dict[str, Any]:
    """Build every row from the drawn images, then measure all on the test images at once."""
    backbone = pool.backbone
    config = TrainConfig(epochs=3, keep="last", batch_size=16, lr=1e-3)
    setting = prepare(backbone, task, config, shots, draw, skip_bad=False, progress=SILENT)
    rows = Rows(setting, pool, draw)
    rows.without_a_pool()
    weights = {}
    for name in methods:
        if name == "uniform":  # needs no look at any source
            weights[name] = torch.full((len(pool.sources),), 1 / len(pool.sources)).double()
            rows.of_direction(name, weights[name])
            continue
        try:
            mix = rows.weigh(METHODS[name])
        except VPromptError as error:
            rows.facts[name] = {"problem": str(error)}
            continue
        weights[name] = mix.weights
        rows.of_direction(name, mix.weights)
    rows.forms()
    if controls:
        rows.controls()
    measured = measure.test_accuracy(backbone, setting.task, rows.candidates)
    return {
        "target": pool.target,
        "related": pool.related,
        "sources": [source.name for source in pool.sources],
        "sizes": pool.moves.sizes.tolist(),
        "shots": shots,
        "draw": draw,
        "images": len(setting.train),
        "digest": setting.train.digest,
        "test_images": next(iter(measured.values())).images,
        "accuracy": {name: found.acc1 for name, found in measured.items()},
        "facts": rows.facts,
        "weights": {name: each.tolist() for name, each in weights.items()},
        "machine": runs.describe_machine(backbone.device, resolve("auto", backbone.device)),
    }


class Rows:
    """The rows of one run: each a prompt, or an ensemble of prompts, with its closed-form head."""

    def __init__(self, setting: Setting, pool: Pool, draw: int) -> None:
        self.setting, self.pool, self.draw = setting, pool, draw
        self.labels, self.classes = setting.train.labels, len(setting.task.classes)
        self.candidates: dict[str, Candidate] = {}
        self.facts: dict[str, Any] = {}
        self.known: dict[str, Features] = {}
        self.judged: dict[str, Point] = {}
        held = heldout.can_hold_out(self.labels)
        self.dealt = heldout.deals(self.labels) if held else None

    def look(self, prompt: Prompt | None) -> Features:
        """Return the features of the training images under a prompt, computed once."""
        key = "none" if prompt is None else prompt_digest(prompt)
        if key not in self.known:
            # Not kept on disk: these are the images of one draw.
            self.known[key] = features_of(
                self.setting.backbone, prompt, self.setting.train, use_cache=False
            )
        return self.known[key]

    def add(self, name: str, prompt: Prompt | None) -> None:
        """Add a row of one prompt."""
        self.candidates[name] = (prompt, closed_form(self.look(prompt), self.labels, self.classes))

    def without_a_pool(self) -> None:
        """Add the frozen features, and the two starts that need no source."""
        self.add("no prompt", None)
        self.add("blank start", self.pool.moves.start)
        build = registry.build(
            "adapters", f"vpt(prompt_init=vpt_uniform, prompt_init_seed={self.draw})"
        )
        self.add("random start", build(self.setting.backbone).prompt())

    def weigh(self, method: str) -> Mix:
        """Return what a method gives the sources."""
        plan = plan_of(method)
        prompts = [source.prompt for source in self.pool.sources if source.prompt is not None]
        evidence = gather_evidence(self.setting, self.pool.sources, prompts, plan, prompts)
        mix, _ = weigh_sources(
            registry.build("transfer", method), method, evidence, merge_twins=plan.merge_twins
        )
        self.setting.forget_checkpoints()
        return mix

    def of_direction(self, name: str, weights: Weights) -> None:
        """Add a direction as published, at the scale that the images choose, and at every scale."""
        moves = self.pool.moves
        self.add(f"{name}, published", moves.sum(weights))
        path = self.path(lambda scale: moves.sum(scale * weights))
        self.facts[name] = {
            "chosen": path.choice.name,
            "points": [point.to_json() for point in path.points],
        }
        self.add(f"{name}, free scale", path.choice.prompt)
        held = self.ensemble(f"{name}, ensemble", path, moves, weights)
        if name == "uniform":
            single = path.choice.held
            better = single is not None and moving.clearly_less(single, held)
            self.candidates[ROBUST] = self.candidates[
                f"{name}, free scale" if better else f"{name}, ensemble"
            ]
            self.facts[ROBUST] = {"form": "sum" if better else "ensemble"}

    def ensemble(
        self, name: str, path: ScalePath, moves: Moves, weights: Weights, members: int = 4
    ) -> HeldOut | None:
        """Add an ensemble of no prompt and the sums of parts of the pool, at the chosen scale."""
        scale = moving.scale_of_members(path)
        parts = moving.group_sums(moves, weights, scale, members)
        return self.joined(name, {part: prompt for part, prompt in parts.items()})

    def joined(self, name: str, prompts: Mapping[str, Prompt]) -> HeldOut | None:
        """Add an ensemble of no prompt and these, with its gain on held-out training images."""
        members = {"no prompt": (None, self.look(None))}
        members |= {part: (prompt, self.look(prompt)) for part, prompt in prompts.items()}
        adapter, joined = ensemble.of_members(self.setting.backbone, members)
        self.candidates[name] = (adapter, closed_form(joined, self.labels, self.classes))
        if self.dealt is None:
            return None
        held = heldout.judge(joined, self.labels, self.classes, self.dealt)
        gain = scale_path.gain_over(self.point("no prompt", 0.0, None).held, held)
        self.facts[name] = {"cv_loss": held.loss, "gain": gain and gain.to_json()}
        return held

    def path(self, at: Callable[[float], Prompt]) -> ScalePath:
        """Return what `scale_path.walk_scales` does, without judging a prompt twice."""
        start = self.pool.moves.start
        points = [self.point("no prompt", 0.0, None), self.point("start", 0.0, start)]
        ladder = [self.point(f"x{scale:g}", scale, at(scale)) for scale in LADDER]
        while ladder[0].alike < ALIKE and ladder[0].scale > LEAST:
            scale = ladder[0].scale / 2
            ladder.insert(0, self.point(f"x{scale:g}", scale, at(scale)))
        points += ladder
        chosen, why = scale_path.choose(points)
        return ScalePath(tuple(points), chosen, why, self.dealt)

    def point(self, name: str, scale: float, prompt: Prompt | None) -> Point:
        """Return a judged point, known from an earlier row if it is the same prompt."""
        key = "none" if prompt is None else prompt_digest(prompt)
        if key not in self.judged:
            features, held = self.look(prompt), None
            if self.dealt is not None:
                held = heldout.judge(features, self.labels, self.classes, self.dealt)
            alike = centred_cosine(self.look(self.pool.moves.start), features)
            self.judged[key] = Point(name, scale, prompt, features, held, alike)
        return replace(self.judged[key], name=name, scale=scale)

    def forms(self) -> None:
        """Add the other forms of the even sum, at fixed scales and side by side."""
        moves, count = self.pool.moves, len(self.pool.moves.names)
        even = torch.full((count,), 1 / count, dtype=torch.float64)
        for scale in LADDER:
            self.add(f"uniform, x{scale:g}", moves.sum(scale * even))
        self.add("task prompt vectors (plain addition)", moves.sum(count * even))
        path = self.path(lambda scale: moves.sum(scale * even))
        self.ensemble("every source, ensemble", path, moves, even, members=count)
        scales = {f"x{scale:g}": moves.sum(scale * even) for scale in LADDER}
        self.joined("scales 1, 2, 4, 8, ensemble", scales)
        if count <= 4:
            self.add("side by side, x1", moving.side_by_side(moves, even)(1.0))
            self.add("side by side, x2", moving.side_by_side(moves, even)(2.0))

    def controls(self) -> None:
        """Add what has the size of the moves but not their direction."""
        for name, moves in controls_of(self.pool.moves, self.draw).items():
            count = len(moves.names)
            even = torch.full((count,), 1 / count, dtype=torch.float64)
            path = self.path(lambda scale, m=moves, e=even: m.sum(scale * e))
            self.facts[name] = {"chosen": path.choice.name}
            self.add(f"{name}, free scale", path.choice.prompt)
            self.ensemble(f"{name}, ensemble", path, moves, even)


def controls_of(moves: Moves, seed: int) -> Mapping[str, Moves]:
    """Return random moves of the same norms in every token, and the same moves on other tokens."""
    generator = stream(seed, "control moves")
    noise = torch.randn(moves.vectors.shape, generator=generator, dtype=torch.float64)
    noise *= moves.vectors.norm(dim=2, keepdim=True) / noise.norm(dim=2, keepdim=True)
    # Sums of independent noise would be shorter than sums of moves that agree: equal them, too.
    wanted = moves.vectors.mean(0).norm() / noise.mean(0).norm()
    order = torch.randperm(moves.vectors.shape[1], generator=generator)
    return {
        "random direction": replace(moves, vectors=noise * wanted),
        "permuted tokens": replace(moves, vectors=moves.vectors[:, order]),
    }


if __name__ == "__main__":
    main()
