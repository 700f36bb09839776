"""A tiny CLIP of its own: trained on drawn shapes, then searched, prompted, taken to new classes.

python -m benchmarks searching.tiny_clip            # some minutes of one core; only what is missing
python -m benchmarks searching.tiny_clip --seeds 1  # one draw of the shots
python -m benchmarks searching.tiny_clip --weights FILE  # train once, read the model there later

No weights of a CLIP are part of this project, and a random one knows nothing. This one has seen
thousands of pairs of a drawing and its caption: filled shapes on dark ground. The target are
outlines on lighter ground, so that zero-shot is right more often than chance and prompts have
something to learn. Half of the target's classes are learned from, the others are new.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from benchmarks import RESULTS, new_parser
from vprompt import evaluate, learn
from vprompt.backbones import open_clip, tiny_clip
from vprompt.core.files import write_tensors
from vprompt.core.randomness import numpy_stream, stream
from vprompt.data.task import SealedSplit, Split, Task
from vprompt.learning.train_config import TrainConfig
from vprompt.models.two_tower import TwoTower
from vprompt.outcome import Outcome
from vprompt.prompts.configurations import (
    Configuration,
    parameters,
    random_of_equal_count,
    shuffled,
)
from vprompt.results import runs
from vprompt.results.measure import harmonic_mean
from vprompt.results.records import Records
from vprompt.searching import search

RECORDS, NAME = Records(RESULTS / "tiny_clip"), "comparison"
SIZE = 32
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 220, 50),
    "purple": (160, 50, 200),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
NUMBERS = ("one", "two", "three")
CAPTIONS = (  # one for a whole batch, so that equal captions are all there is to confuse
    "a photo of {number} {colour} {shape}s.",
    "a photo of a {colour} {shape}.",
    "a drawing of a {colour} {shape}.",
    "a photo of something {colour}.",
    "a photo of a {shape}.",
    "{number} things.",
)
SHOTS, TESTS, BATCH = 16, 40, 32
USUAL, RATES = 0.005, (0.005, 0.02, 0.05, 0.1)
CANDIDATES = [0, 2, 4, 6]


def main() -> None:
    """Train, search, learn, compare, and write one record."""
    parser = new_parser(__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="of the contrastive training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=20, help="of every method and of the search")
    parser.add_argument("--weights", type=Path, help="where the trained model is kept")
    options = parser.parse_args()
    clip, facts = trained(options.steps, options.weights)
    print(facts)
    known = RECORDS.read(NAME) if NAME in RECORDS else {}
    record: dict[str, Any] = {
        "pretraining": facts,
        "shots": SHOTS,
        "epochs": options.epochs,
        "candidates": CANDIDATES,
        "batch": BATCH,
        "seeds": {},
        "machine": runs.describe_machine(torch.device("cpu"), "fp32"),
    }
    if any(known.get(key) != record[key] for key in ("pretraining", "shots", "epochs", "batch")):
        known = {}
    record["rates"] = known.get("rates") or choose_rate(clip, options.epochs)
    rate = float(max(record["rates"], key=lambda name: record["rates"][name]))
    record["seeds"] = known.get("seeds", {})
    for seed in options.seeds:
        done = record["seeds"].setdefault(str(seed), {"rows": {}})
        compare(clip, seed, options.epochs, rate, done)
        record["mean"] = means(record["seeds"])
        RECORDS.write(NAME, record)
    for name, row in record["mean"].items():
        print(f"{name:<28}", *(f"{key} {100 * value:5.1f}" for key, value in row.items()))


# Drawings


def draw(
    rng: np.random.Generator, colour: str, shape: str, count: int, *, outline: bool
) -> np.ndarray:
    """Return one picture `uint8 [size, size, 3]` of `count` equal things in places of their own."""
    low, high = (50, 140) if outline else (0, 70)
    picture = rng.integers(low, high, (SIZE, SIZE, 3)).astype(float)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    half = SIZE // 2
    for quarter in rng.permutation(4)[:count]:
        radius = rng.uniform(4.0, 6.5)
        centre = [half * (quarter // 2) + half / 2, half * (quarter % 2) + half / 2]
        y, x = (
            axis - c - rng.uniform(-1, 1) for axis, c in zip((rows, columns), centre, strict=True)
        )
        inside = _inside(shape, y, x, radius)
        if outline:
            inside &= ~_inside(shape, y, x, radius - 3.0)
        tint = np.asarray(COLOURS[colour]) * rng.uniform(0.8, 1.0)
        picture[inside] = tint + rng.normal(0, 12, (int(inside.sum()), 3))
    return picture.clip(0, 255).astype(np.uint8)


def _inside(shape: str, y: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    if shape == "circle":
        return y**2 + x**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(y), abs(x)) <= 0.85 * radius
    if shape == "triangle":
        return (y <= 0.8 * radius) & (2 * abs(x) <= y + radius)
    arm = 0.36 * radius
    return (np.maximum(abs(y), abs(x)) <= radius) & (np.minimum(abs(y), abs(x)) <= arm)


def drawings(count: int, seed: int, *, outline: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures, and for each the numbers of its colour, shape and count."""
    rng = numpy_stream(seed, f"drawings, outline {outline}")
    sizes = (len(COLOURS), len(SHAPES), len(NUMBERS))
    facts = np.stack([rng.integers(0, size, count) for size in sizes], axis=1)
    names = list(COLOURS)
    pictures = [
        draw(rng, names[colour], SHAPES[shape], 1 + number, outline=outline)
        for colour, shape, number in facts
    ]
    return np.stack(pictures), facts


def target(seed: int, half: str, *, val: int = 4) -> Task:
    """Return the few-shot task: colour and shape of outlines, base or new classes."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    order = numpy_stream(0, "classes").permutation(len(names))
    middle = len(names) // 2
    kept = order[:middle] if half == "base" else order[middle:]
    classes = tuple(names[index] for index in kept)

    def split(name: str, count: int, seed: int) -> Split:
        rng = numpy_stream(seed, f"target, {name}, {half}")
        labels = tuple(label for label in range(len(classes)) for _ in range(count))
        pictures = [
            draw(rng, *classes[label].split(), int(rng.integers(1, 4)), outline=True)
            for label in labels
        ]
        return Split(name, np.stack(pictures), labels)

    return Task(
        f"outlines:{half}",
        classes,
        split("train", SHOTS, seed),
        split("val", val, seed),
        SealedSplit(split("test", TESTS, 0)),
        facts={"few_shot": {"shots": SHOTS, "seed": seed}},
        templates=("a photo of a {}.",),
    )


# The model


def trained(steps: int, weights: Path | None) -> tuple[TwoTower, dict[str, Any]]:
    """Return the model of a file and how it was trained, or train it and write the file."""
    if weights is None or not weights.exists():
        backbone, facts = pretrain(steps)
        if weights is not None:
            state: Any = {k: v.contiguous() for k, v in backbone.state_dict().items()}
            write_tensors(weights, state, {"facts": json.dumps(facts)})
        return backbone, facts
    backbone = blank()
    with safe_open(weights, framework="pt") as file:
        backbone.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return backbone, json.loads(file.metadata()["facts"])


def blank() -> TwoTower:
    """Return the model before training."""
    vision = {**tiny_clip.CONFIG["vision_cfg"], "image_size": SIZE}
    config = {**tiny_clip.CONFIG, "vision_cfg": vision}
    return open_clip.from_config(config, name="drawn_clip", seed=0)


def pretrain(steps: int, *, pairs: int = 6000, batch: int = 96) -> tuple[TwoTower, dict[str, Any]]:
    """Return a tiny CLIP trained on drawn pairs, frozen again, and how that went."""
    began = time.process_time()
    backbone: Any = blank()
    clip = backbone.clip.requires_grad_(True)
    pictures, facts = drawings(pairs, 0)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    randomness = stream(0, "pretraining")
    for _ in range(steps):
        rows = torch.randint(0, pairs, (batch,), generator=randomness)
        form = CAPTIONS[int(torch.randint(0, len(CAPTIONS), (), generator=randomness))]
        loss = contrast(backbone, pictures[rows.numpy()], captions(facts[rows.numpy()], form))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=np.log(100))
    clip.requires_grad_(False)
    done: dict[str, Any] = {
        "steps": steps,
        "pairs": pairs,
        "batch": batch,
        "loss": float(loss.detach()),
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    return backbone, done | {"accuracy_on_fresh_drawings": accuracies(backbone)}


def captions(facts: np.ndarray, form: str) -> list[str]:
    """Write what is in the pictures."""
    names = list(COLOURS)
    return [
        form.format(colour=names[colour], shape=SHAPES[shape], number=NUMBERS[number])
        for colour, shape, number in facts
    ]


def contrast(backbone: Any, pictures: np.ndarray, texts: Sequence[str]) -> Tensor:
    """Return CLIP's loss; pictures of one caption are all right for it."""
    distinct = list(dict.fromkeys(texts))
    which = torch.tensor([distinct.index(text) for text in texts])
    tower = backbone.text
    ids = tower.tokenise(distinct, tower.context_length)
    ids = ids[:, : int(tower.ends(ids).max()) + 1]
    read = tower.words(ids) + tower.positions(ids.shape[1])
    for index in range(tower.depth):
        read = tower.block(index, read)
    read = functional.normalize(tower.pool(read, tower.ends(ids)), dim=1)
    images = backbone.normalise(torch.from_numpy(pictures))
    seen = functional.normalize(backbone.clip.encode_image(images), dim=1)
    logits = backbone.scale * seen @ read.T
    of_text = functional.one_hot(which, len(distinct)).float()
    of_text = of_text / of_text.sum(0)
    reverse = -(of_text * logits.log_softmax(0)).sum(0).mean()
    return (functional.cross_entropy(logits, which) + reverse) / 2


@torch.no_grad()
def accuracies(backbone: Any, count: int = 1000) -> dict[str, float]:
    """Return how often the right caption is nearest, for filled shapes that it has not seen."""
    pictures, facts = drawings(count, 1)
    found, everything = {}, drawings(count, 2)[1]
    for form in CAPTIONS:
        texts, right = list(dict.fromkeys(captions(everything, form))), captions(facts, form)
        ids = backbone.text.tokenise(texts, backbone.text.context_length)
        images = backbone.normalise(torch.from_numpy(pictures))
        logits, _ = backbone.clip.get_logits(images, ids)
        best = [texts[index] for index in logits.argmax(1).tolist()]
        found[form] = float(np.mean([a == b for a, b in zip(best, right, strict=True)]))
    return found


# The comparison


def settings(epochs: int, seed: int, lr: float) -> TrainConfig:
    """Return how every method is trained, but for its rate."""
    return TrainConfig(
        epochs=epochs,
        batch_size=BATCH,
        lr=lr,
        weight_decay=0.0,
        keep="last",
        precision="fp32",
        seed=seed,
    )


def choose_rate(clip: TwoTower, epochs: int) -> dict[str, float]:
    """Return the validation accuracy of uniform lengths at every rate, on a draw of its own.

    The test split stays closed. Tokens of `clip_deep` start 50 times as large as those of the
    published methods, which keep the usual rate; Adam turns a large token more slowly.
    """
    drawn, found = target(0, "base", val=SHOTS), {}
    for lr in RATES:
        config = settings(epochs, 0, lr)
        done = learn(drawn, model=clip, method="clip_deep", config=config, test=False, device="cpu")
        found[str(lr)] = done.run["tuning"]["history"][-1]["val_accuracy"]
    return found


def compare(clip: TwoTower, seed: int, epochs: int, rate: float, done: dict[str, Any]) -> None:
    """Fill in what every method reaches on base and new classes with one draw of the shots.

    `rate` is that of searched and of deep prompts. What is there already is not run again.
    """
    base, new = target(seed, "base"), target(seed, "new")
    with_seed, rows = f"prompt_init_seed={seed}", done["rows"]
    spec = f"clip_dpl(lengths={CANDIDATES}, alpha_lr=0.05, {with_seed})"
    if rows.get("found", {}).get("method") != spec or rows["found"]["lr"] != rate:
        config = settings(epochs, seed, rate)
        searched = search(
            base, model=clip, method=spec, search_config=config, config=config, draw=seed
        )
        rows["found"] = {"method": spec, "lr": rate, **judged(clip, searched, new)}
        memory = searched.run["search"]["tuning"]["memory"]
        done["found"] = searched.run["search"]["found"]
        done["search"] = {key: memory[key] for key in ("gap", "stopped", "alpha", "found")}
        done["chance"] = 1 / len(base.classes)
    for name, method in methods(done["found"], clip, with_seed, seed).items():
        lr = rate if method.startswith("clip_deep") else USUAL
        known = rows.get(name, {})
        if (known.get("method"), known.get("lr")) != (method, lr):
            config = settings(epochs, seed, lr)
            learned = learn(base, model=clip, method=method, config=config, device="cpu")
            rows[name] = {"method": method, "lr": lr, **judged(clip, learned, new)}


def methods(found: Configuration, clip: TwoTower, with_seed: str, seed: int) -> dict[str, str]:
    """Return the methods to compare with, those of searched lengths at equal parameters."""
    widths = {"image": clip.dim, "text": clip.text.dim}

    def deep(counts: Configuration, more: str = "") -> str:
        inside = f"num_image_tokens={counts['image']}, num_text_tokens={counts['text']}"
        return f"clip_deep({inside}, {with_seed}{more})"

    named = {
        "zero-shot": "zero_shot",
        "linear probe": "linear",
        "CoOp, 4 tokens": f"coop(num_context_tokens=4, {with_seed})",
        "VPT, 2 tokens": f"clip_vpt(num_virtual_tokens=2, {with_seed})",
        "IVLP, 2 + 2": f"ivlp({with_seed})",
        "MaPLe": f"maple({with_seed})",
        "uniform 2 + 2": f"clip_deep({with_seed})",
    }
    if not parameters(found, widths):
        return named
    return {
        **named,
        "found, distilled": deep(found, ", distill=1.0"),
        "found, layers shuffled": deep(shuffled(found, seed=seed)),
        "random of equal parameters": deep(
            random_of_equal_count(found, CANDIDATES, widths, seed=seed)
        ),
    }


def judged(clip: TwoTower, done: Outcome, new: Task) -> dict[str, Any]:
    """Return accuracy on base classes, and on new ones where the artefact can read them."""
    row: dict[str, Any] = {"base": done.test["learned"].acc1}
    row["parameters"] = sum(done.run["tuning"]["parameters"].values())
    if done.artifact.text is not None:
        row["new"] = evaluate(new, artifact=done.artifact, model=clip, precision="fp32")[
            "learned"
        ].acc1
        row["hm"] = harmonic_mean(row["base"], row["new"])
    return row


def means(seeds: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the mean over seeds of every row's accuracies."""
    found: dict[str, dict[str, float]] = {}
    for name in next(iter(seeds.values()))["rows"]:
        rows = [each["rows"][name] for each in seeds.values() if name in each["rows"]]
        keys = [key for key in ("base", "new", "hm") if all(key in row for row in rows)]
        found[name] = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    return found


if __name__ == "__main__":
    main()
