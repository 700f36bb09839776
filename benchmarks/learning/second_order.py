"""Steps that count: does a better step reach AdamW's training loss in a third of the steps?

    python -m benchmarks learning.second_order --data DIR --models DIR

VPT-Deep with five tokens in every block of `vit_tiny_patch16_224` at 64 px, on 96 training images
of each of eight sets, no augmentation, bf16 where the processor has it, one thread. The target is
the loss on all training images after 60 steps of 32 images, as `vprompt learn` trains: AdamW on
tokens and head, a cosine over all steps, a closed-form head to start from; the best of four rates.
Every other way has 20 steps with a cosine of its own, and the best of its own rates:

- `AdamW`: the same in a third of the steps.
- `large batch`: all 96 images a step, which costs as much as the target does.
- `Muon`: the momentum of each block's tokens made orthogonal (Jordan et al., 2024).
- `Shampoo`: each block's gradient between the inverse fourth roots of its two covariances
  (Gupta et al., ICML 2018, arXiv 1802.09568).
- `natural`: one solve with the Fisher matrix of the batch's images over all tokens at once, from
  gradients of each image under labels drawn from the model's own probabilities, so that it is the
  Gauss-Newton matrix in the mean (Martens, JMLR 2020, arXiv 1412.1193). It costs a second backward
  pass and a solve as large as the batch.
- `refitted head`: AdamW on the tokens; the head is fitted anew in closed form after every pass of
  the images.
- `tokens alone` and `head alone` say where the loss falls.

Only the tokens' step differs: the head is always trained by AdamW, but for `refitted head`. A way
is chosen and judged by its training loss; what it reaches on 200 validation images is told beside.
The test split stays closed.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import RESULTS, new_parser
from benchmarks.learning import common as learning
from benchmarks.speed.timing import machine
from vprompt.cli import terminal
from vprompt.core.files import read_json, write_json
from vprompt.core.precision import autocast
from vprompt.core.randomness import stream
from vprompt.core.registry import build
from vprompt.data.task import Examples
from vprompt.learning import goals
from vprompt.learning.classifier import Classifier, start_head
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone, extract
from vprompt.models.heads import closed_form
from vprompt.opening import open_task
from vprompt.prompts.prompt import Prompt
from vprompt.stages import prepare

SETS = (
    "bbbc039_count",
    "coil20",
    "digits",
    "dtd10",
    "elpv4",
    "oxford_flowers17",
    "pacs",
    "rsscn7",
)
TOKENS, IMAGES, BATCH, STEPS, THIRD = 5, 96, 32, 60, 20
RATES = (5e-3, 1.5e-2, 5e-2, 1.5e-1)
LOOKS = 10  # the loss on all images is taken after every so many steps


@dataclass
class Run:
    """A training under way: what steps are made of."""

    adapter: Any
    classifier: Classifier
    generator: torch.Generator

    @property
    def tokens(self) -> torch.nn.Parameter:
        """The tokens that are trained, `[tokens, width]`."""
        found: torch.nn.Parameter = self.adapter.tokens
        return found

    def features(self, images: Tensor) -> Tensor:
        """Return the features of images under the tokens as they are."""
        with autocast("auto", images.device):
            found: Tensor = self.adapter.features(images)
        return found

    def logits(self, images: Tensor) -> Tensor:
        """Return what the head says of images."""
        return self.classifier.logits(self.features(images))

    @property
    def parts(self) -> list[Tensor]:
        """The rows of each block."""
        return [(self.adapter.blocks == block).nonzero().flatten() for block in self.blocks]

    @property
    def blocks(self) -> list[int]:
        """The blocks that have tokens."""
        found: list[int] = self.adapter.blocks.unique().tolist()
        return found


Direction = Callable[[Run, Tensor, Tensor], Tensor]  # images, labels: the step before its rate


@dataclass(frozen=True)
class Way:
    """A way to train: how the tokens move, at which rates, and what the head does meanwhile."""

    rates: tuple[float, ...]
    direction: Callable[[], Direction] | None = None  # None: AdamW
    batch: int = BATCH
    steps: int = THIRD
    moves_tokens: bool = True
    head: str = "trained"  # or `refitted`, `frozen`


def muon(momentum: float = 0.95) -> Direction:
    """Return steps along the orthogonal factor of each block's momentum."""
    kept: dict[int, Tensor] = {}

    def direction(run: Run, images: Tensor, labels: Tensor) -> Tensor:
        gradient = _gradient(run)
        found = torch.zeros_like(gradient)
        for block, rows in zip(run.blocks, run.parts, strict=True):
            kept[block] = momentum * kept.get(block, 0.0) + gradient[rows]
            left, _, right = torch.linalg.svd(
                gradient[rows] + momentum * kept[block], full_matrices=False
            )
            found[rows] = left @ right
        return found

    return direction


def shampoo(damping: float = 1e-4) -> Direction:
    """Return each block's gradient between the inverse fourth roots of its summed covariances."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def direction(run: Run, images: Tensor, labels: Tensor) -> Tensor:
        gradient = _gradient(run)
        found = torch.zeros_like(gradient)
        for block, rows in zip(run.blocks, run.parts, strict=True):
            own = gradient[rows].double()
            left, right = kept.get(block, (torch.zeros(()), torch.zeros(())))
            kept[block] = (left + own @ own.T, right + own.T @ own)
            roots = [_inverse_root(each, damping) for each in kept[block]]
            found[rows] = (roots[0] @ own @ roots[1]).to(found)
        return found

    return direction


def _inverse_root(matrix: Tensor, damping: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    floor = damping * values[-1].clamp_min(1e-30)
    return (vectors * values.clamp_min(floor).pow(-0.25)) @ vectors.T


def natural(damping: float) -> Direction:
    """Return the gradient divided by the damped Fisher matrix of the batch.

    `damping` is a share of the mean of the matrix's eigenvalues that are not zero.
    """

    def direction(run: Run, images: Tensor, labels: Tensor) -> Tensor:
        gradient = _gradient(run)
        rows = run.tokens.detach().expand(len(images), -1, -1).clone().requires_grad_()
        prompt = Prompt(run.tokens.detach(), run.adapter.blocks, run.adapter.persist)
        with autocast("auto", images.device):
            features = extract(run.adapter.backbone, images, prompt, rows)
        logits = run.classifier.logits(features)
        said = torch.multinomial(logits.detach().softmax(1), 1, generator=run.generator).flatten()
        functional.cross_entropy(logits, said, reduction="sum").backward()
        assert rows.grad is not None
        each = rows.grad.flatten(1).double()
        gram = each @ each.T / len(each)
        level = damping * gram.diagonal().mean()
        flat = gradient.flatten().double()
        inner = torch.linalg.solve(
            gram + level * torch.eye(len(gram), dtype=torch.float64), each @ flat / len(each)
        )
        return ((flat - each.T @ inner) / level).reshape(gradient.shape).to(gradient)

    return direction


def _gradient(run: Run) -> Tensor:
    assert run.tokens.grad is not None
    return run.tokens.grad.detach().clone()


WAYS = {
    "target": Way(RATES, steps=STEPS),
    "AdamW": Way(RATES),
    "large batch": Way((1.5e-2, 5e-2, 1.5e-1), batch=IMAGES),
    "Muon": Way((0.1, 0.3, 1.0), muon),
    "Shampoo": Way((0.1, 0.3, 1.0), shampoo),
    "natural, damping 1": Way((1.0, 3.0, 10.0), lambda: natural(1.0)),
    "natural, damping 0.1": Way((0.1, 0.3, 1.0), lambda: natural(0.1)),
    "refitted head": Way((1.5e-2, 5e-2, 1.5e-1), head="refitted"),
    "tokens alone": Way((1.5e-2, 5e-2), head="frozen", steps=STEPS),
    "head alone": Way((0.0,), moves_tokens=False, steps=STEPS),
}


def main() -> None:
    """Run what is missing, then say for how many sets each way is there in a third of the steps."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", help="another backbone, such as `tiny`")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--output", type=Path, default=RESULTS / "speed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = options.output / "second-order.json"
    found: dict[str, Any] = read_json(place) if place.exists() else {"sets": {}}
    backbone = learning.open_model(options)
    for name in options.sets:
        done = found["sets"].setdefault(name, {})
        images = _images(options, backbone, name)
        for title in options.ways:
            if title not in done:
                done[title] = _best(backbone, *images, WAYS[title])
                print(name, title, _told(done, title), flush=True)
                write_json(place, {**found, "reached": reached(found), "machine": machine()})


def _images(
    options: argparse.Namespace, backbone: Backbone, name: str
) -> tuple[Examples, Examples, int]:
    there = options.data / name
    whole = open_task(str(there) if there.is_dir() else name)
    task = learning.draw(whole, IMAGES, 200, 0)
    with terminal.progress(quiet=True) as progress:
        setting = prepare(backbone, task, None, None, 0, skip_bad=False, progress=progress)
    assert setting.val is not None
    return setting.train, setting.val, len(task.classes)


def _best(
    backbone: Backbone, train: Examples, val: Examples, classes: int, way: Way
) -> dict[str, Any]:
    """Return what a way reaches at each of its rates, the least loss first."""
    tried = [train_once(backbone, train, val, classes, way, rate) for rate in way.rates]
    return {"steps": way.steps, "batch": way.batch, "tried": sorted(tried, key=_loss)}


def _loss(tried: dict[str, Any]) -> float:
    loss = float(tried["loss"][-1])
    return loss if math.isfinite(loss) else math.inf


def train_once(
    backbone: Backbone, train: Examples, val: Examples, classes: int, way: Way, rate: float
) -> dict[str, Any]:
    """Train at one rate; return the loss on all training images along the way, and the time."""
    config = TrainConfig(epochs=1, batch_size=way.batch, seed=0)
    adapter: Any = build("adapters", f"vpt(num_virtual_tokens={TOKENS})")(backbone)
    goal = goals.OneClass(classes)
    head, whitening = start_head(adapter, train, goal, config)
    run = Run(adapter, Classifier(adapter, head, whitening), stream(0, "labels"))
    pixels, labels = next(train.batches(len(train)))
    images = backbone.normalise(pixels)
    groups = [{"params": [run.classifier.weight, run.classifier.bias], "peak": config.rate_of_head}]
    if way.head != "trained":
        groups = []
    if way.direction is None and way.moves_tokens:
        groups.append({"params": [run.tokens], "peak": rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay) if groups else None
    losses, norms, spent = [_whole(run, images, labels)], [], 0.0
    direct = None if way.direction is None else way.direction()
    for number, rows in enumerate(_rounds(len(train), way), 1):
        began = time.process_time()
        share = 0.5 * (1 + math.cos(math.pi * (number - 1) / way.steps))
        run.classifier.zero_grad(set_to_none=True)
        logits = run.logits(images[rows])
        functional.cross_entropy(logits, labels[rows]).backward()
        norms.append(float(_gradient(run).norm()))
        moved = None if direct is None else direct(run, images[rows], labels[rows])
        for group in optimizer.param_groups if optimizer else ():
            group["lr"] = group["peak"] * share
        if optimizer:
            optimizer.step()
        if moved is not None:
            with torch.no_grad():
                run.tokens.sub_(rate * share * moved)
        if way.head == "refitted" and number % (len(train) // way.batch) == 0:
            _refit(run, images, labels, classes)
        spent += time.process_time() - began
        if number % LOOKS == 0:
            losses.append(_whole(run, images, labels))
    return {
        "rate": rate,
        "loss": [round(each, 5) for each in losses],
        "gradient_norm": [round(each, 5) for each in norms[:: way.steps // 3]],
        "val_accuracy": _accuracy(run, val),
        "move": round(float((run.tokens.detach() - adapter.start.tokens).norm()), 3),
        "start_norm": round(float(adapter.start.tokens.norm()), 3),
        "cpu_seconds": round(spent, 2),
    }


def _rounds(count: int, way: Way) -> list[Tensor]:
    """Return the rows of every step: the images in an order of each pass's own."""
    order = stream(0, "steps that count")
    rows: list[Tensor] = []
    while len(rows) < way.steps:
        rows += torch.randperm(count, generator=order).split(way.batch)
    return rows[: way.steps]


@torch.no_grad()
def _whole(run: Run, images: Tensor, labels: Tensor) -> float:
    logits = run.logits(images)
    return functional.cross_entropy(logits.double(), labels).item()


@torch.no_grad()
def _accuracy(run: Run, val: Examples) -> float:
    pixels, labels = next(val.batches(len(val)))
    logits = run.logits(run.adapter.backbone.normalise(pixels))
    return round((logits.argmax(1) == labels).double().mean().item(), 4)


@torch.no_grad()
def _refit(run: Run, images: Tensor, labels: Tensor, classes: int) -> None:
    head = closed_form(run.features(images).float(), labels, classes)
    whiten, mean = run.classifier.whiten, run.classifier.mean
    assert run.classifier.weight is not None and run.classifier.bias is not None
    weight = torch.linalg.solve(whiten.double(), head.weight.double().T).T.float()
    run.classifier.weight.copy_(weight)
    run.classifier.bias.copy_(head.bias.float() + head.weight.float() @ mean)


def _told(done: dict[str, Any], title: str) -> str:
    best = done[title]["tried"][0]
    shown = f"{best['loss'][0]:.3f} -> {best['loss'][-1]:.4f}, {100 * best['val_accuracy']:.1f} %"
    return f"{shown} at {best['rate']:g} in {best['cpu_seconds']:.1f} s"


def reached(found: dict[str, Any]) -> dict[str, Any]:
    """Return for each way on how many sets it has the target's loss, and the median of its cost."""
    said: dict[str, Any] = {}
    for title in WAYS:
        both = [each for each in found["sets"].values() if title in each and "target" in each]
        if title == "target" or not both:
            continue
        ends = [(each[title]["tried"][0], each["target"]["tried"][0]) for each in both]
        costs = sorted(own["cpu_seconds"] / goal["cpu_seconds"] for own, goal in ends)
        points = [100 * (own["val_accuracy"] - goal["val_accuracy"]) for own, goal in ends]
        said[title] = {
            "sets": len(ends),
            "mean_points_on_validation": round(sum(points) / len(points), 2),
            "there": sum(own["loss"][-1] <= goal["loss"][-1] for own, goal in ends),
            "median_share_of_time": round(costs[len(costs) // 2], 3),
        }
    return said


if __name__ == "__main__":
    main()
