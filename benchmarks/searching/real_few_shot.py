"""Few shots on a two-tower model of real parts: does a searched length help with real words?

    python -m benchmarks searching.real_few_shot --data DIR --models DIR           # what is missing
    python -m benchmarks searching.real_few_shot rates --data DIR --models DIR     # once, before

The first half of a set's classes is learned from, at 1 or 4 images each, the other half is new. The
model has never seen the set (`searching.real_clip`). Images have 128 px, so one is 65 tokens. Every
method is trained for equally many epochs. Its rate is the one that was best for it on validation
images of a draw that is in no table, or, before `rates` was run, 0.02 for tokens that start large
and 0.005 for all others. One record for every set, number of shots and draw; a row that is there is
not run again.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import new_parser
from benchmarks.searching import real_clip
from benchmarks.searching.real_clip import RECORDS
from vprompt import evaluate, learn
from vprompt.data.task import Split, Task
from vprompt.learning.train_config import TrainConfig
from vprompt.models.two_tower import TwoTower
from vprompt.outcome import Outcome
from vprompt.prompts.configurations import (
    Configuration,
    parameters,
    random_of_equal_count,
    shuffled,
    uniform,
)
from vprompt.results import runs
from vprompt.results.measure import harmonic_mean
from vprompt.searching import search

SETS = ("caltech101", "oxford_flowers17", "pacs", "dtd10")
EVERY = {"caltech101": 5}  # of so many classes one is taken
TESTS = 20  # images of a class, at most
EPOCHS, BATCH, CANDIDATES = 20, 32, [0, 2, 4, 6]
RATED = ("oxford_flowers17", 1, 0)  # set, shots and draw that rates are chosen on
RATES = (0.002, 0.005, 0.02, 0.05)
FIXED = {
    "zero-shot": "zero_shot",
    "linear probe": "linear",
    "CoOp, 4 tokens": "coop(num_context_tokens=4, {seed})",
    "VPT, 2 tokens": "clip_vpt(num_virtual_tokens=2, {seed})",
    "IVLP, 2 + 2": "ivlp({seed})",
    "MaPLe": "maple({seed})",
    "uniform 2 + 2": "clip_deep({seed})",
}
DEEP = "uniform 2 + 2"  # whose rate all prompts of any lengths take


def main() -> None:
    """Choose rates, or run what is missing."""
    parser = new_parser(__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "rates"], default="run")
    real_clip.add_options(parser, image_size=128)
    parser.add_argument("--sets", nargs="+", default=[*SETS])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "rates":
        choose_rates(options)
        return
    for draw in options.draws:
        for name in options.sets:
            for shots in options.shots:
                run(options, name, shots, draw)


def half(data: Path, name: str, part: str) -> Task:
    """Return the base or the new classes of a set, with few test images."""
    whole = real_clip.open_set(data, name)
    taken = range(0, len(whole.classes), EVERY.get(name, 1))
    middle = math.ceil(len(taken) / 2)
    kept = taken[:middle] if part == "base" else taken[middle:]
    number = {label: row for row, label in enumerate(kept)}

    def cut(split: Split) -> Split:
        seen = dict.fromkeys(kept, 0)
        rows = []
        for row, label in enumerate(split.labels):
            if label in seen and (split.name != "test" or seen[label] < TESTS):
                seen[label] += 1
                rows.append(row)
        found = split.subset(rows, f"{split.name}, {part} classes")
        return replace(found, labels=tuple(number[label] for label in found.labels))

    assert whole.test is not None and whole.val is not None
    return replace(
        whole,
        name=f"{name}:{part}",
        classes=tuple(whole.classes[label] for label in kept),
        train=cut(whole.train),
        val=cut(whole.val),
        test=whole.test.cut(cut),
        facts={**whole.facts, "subset": part},
    )


def settings(draw: int, lr: float) -> TrainConfig:
    """Return how every method is trained, but for its rate."""
    return TrainConfig(
        epochs=EPOCHS, batch_size=BATCH, lr=lr, weight_decay=0.0, keep="last", seed=draw
    )


def choose_rates(options: argparse.Namespace) -> None:
    """Record the validation loss of every method at every rate; the test split stays closed."""
    name, shots, draw = RATED
    clip, _ = real_clip.opened(options, name)
    task = half(options.data, name, "base").few_shot(shots, draw)
    key = f"rates_{options.image_size}px"
    record: dict[str, Any] = RECORDS.read(key) if key in RECORDS else {"loss": {}}
    record |= {"set": name, "shots": shots, "draw": draw, "epochs": EPOCHS}
    record["image_size"] = options.image_size
    for title, method in FIXED.items():
        if method == "zero_shot":
            continue
        found = record["loss"].setdefault(title, {})
        for lr in RATES:
            if str(lr) in found:
                continue
            config = settings(draw, lr)
            spec = method.format(seed=f"prompt_init_seed={draw}")
            done = learn(task, model=clip, method=spec, config=config, test=False, device="cpu")
            last = done.run["tuning"]["history"][-1]
            found[str(lr)] = last["val_loss"]
            print(title, lr, last["val_loss"], last["val_accuracy"], flush=True)
            RECORDS.write(key, record)


def rates(image_size: int) -> dict[str, float]:
    """Return the rate of every method, the usual ones unless they were chosen."""
    key = f"rates_{image_size}px"
    if key not in RECORDS:
        return {title: 0.02 if title == DEEP else 0.005 for title in FIXED}
    losses = RECORDS.read(key)["loss"]
    return {title: float(min(found, key=found.get)) for title, found in losses.items()}


def run(options: argparse.Namespace, name: str, shots: int, draw: int) -> None:
    """Fill in what every method reaches on base and new classes with one draw of the shots."""
    key = f"few_shot_{options.image_size}px_{name}_{shots}shots_draw{draw}"
    record: dict[str, Any] = RECORDS.read(key) if key in RECORDS else {"rows": {}}
    if record.get("complete"):
        return
    clip, facts = real_clip.opened(options, name)
    base, new = (half(options.data, name, part) for part in ("base", "new"))
    base = base.few_shot(shots, draw)
    lr, rows, seed = rates(options.image_size), record["rows"], f"prompt_init_seed={draw}"
    record |= {
        "set": name,
        "shots": shots,
        "draw": draw,
        "image_size": options.image_size,
        "epochs": EPOCHS,
        "batch": BATCH,
        "model": facts["name"],
        "classes": [list(base.classes), list(new.classes)],
        "images": len(base.train),
        "machine": runs.describe_machine(torch.device("cpu"), "auto"),
    }

    def add(title: str, method: str, rate: float, found: Outcome, began: float) -> None:
        row = {"method": method, "lr": rate, **judged(clip, found, new)}
        rows[title] = row | {"cpu_seconds": round(time.process_time() - began, 1)}
        RECORDS.write(key, record)
        shown = {name: round(row[name], 3) for name in ("base", "new") if name in row}
        print(key, title, shown, rows[title]["cpu_seconds"], flush=True)

    if "found" not in rows:
        method, rate = f"clip_dpl(lengths={CANDIDATES}, alpha_lr=0.05, {seed})", lr[DEEP]
        began, config = time.process_time(), settings(draw, rate)
        searched = search(
            base, model=clip, method=method, search_config=config, config=config, draw=draw
        )
        told = searched.run["search"]
        record["found"], record["labelled_images"] = told["found"], told["labelled_images"]
        memory = told["tuning"]["memory"]
        record["search"] = {name: memory[name] for name in ("gap", "stopped", "found")}
        record["search"]["alpha"] = _short(memory["alpha"])
        add("found", method, rate, searched, began)
    for title, (method, rate) in compared(record["found"], clip, lr, seed, draw).items():
        if title not in rows:
            began = time.process_time()
            config = settings(draw, rate)
            found = learn(base, model=clip, method=method, config=config, device="cpu")
            add(title, method, rate, found, began)
    record["complete"] = True
    RECORDS.write(key, record)


def compared(
    found: Configuration, clip: TwoTower, lr: dict[str, float], seed: str, draw: int
) -> dict[str, tuple[str, float]]:
    """Return the methods to compare with and their rates, lengths at equal parameters."""
    widths = {"image": clip.dim, "text": clip.text.dim}

    def deep(counts: Configuration, more: str = "") -> tuple[str, float]:
        inside = f"num_image_tokens={counts['image']}, num_text_tokens={counts['text']}"
        return f"clip_deep({inside}, {seed}{more})", lr[DEEP]

    named = {
        title: (method.format(seed=seed), lr.get(title, 0.001)) for title, method in FIXED.items()
    }
    named["uniform 2 + 2, distilled"] = (f"clip_deep({seed}, distill=1.0)", lr[DEEP])
    if not parameters(found, widths):
        return named
    drawn = random_of_equal_count(found, CANDIDATES, widths, seed=draw)
    return {
        **named,
        "found, distilled": deep(found, ", distill=1.0"),
        "found, layers shuffled": deep(shuffled(found, seed=draw)),
        "random of equal parameters": deep(drawn),
        "uniform of equal parameters": deep(uniform(found, widths)),
    }


def judged(clip: TwoTower, done: Outcome, new: Task) -> dict[str, Any]:
    """Return accuracy on base classes, and on new ones where the artefact can read them."""
    row: dict[str, Any] = {"base": done.test["learned"].acc1}
    row["parameters"] = sum(done.run["tuning"]["parameters"].values())
    if done.artifact.text is not None:
        measured = evaluate(new, artifact=done.artifact, model=clip)
        row["new"] = measured["learned"].acc1
        row["hm"] = harmonic_mean(row["base"], row["new"])
    return row


def _short(value: Any) -> Any:
    """Return nested lists of numbers with four digits: hundreds of them are in every record."""
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else round(value, 4)


if __name__ == "__main__":
    main()
