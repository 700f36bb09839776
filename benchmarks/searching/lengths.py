"""Is a searched length worth more than one that anyone could write down? DPL and its controls.

    python -m benchmarks searching.lengths compare --data DIR  # all arms, test opened once
    python -m benchmarks searching.lengths cost --data DIR     # seconds per step over VPT-Deep
    python -m benchmarks searching.lengths rates --data DIR    # alpha's rate, on val200 alone

`compare` takes six targets and three draws of about 200 training images, backbone `demo` at 70 px.
First come the searches, on training images and val200 (alpha's images): a free one per target and
draw, with `--budget-seeds` one for each of three budgets on tokens, with `--placed-seeds` a run of
PRO-VPT at the number of tokens that the free search found. Then a fresh prompt is trained for every
configuration, at the target's rate (chosen with VPT-Deep by `placing.moves rates`), for equal
epochs, the last of which is kept: nothing is chosen. All candidates of a target and draw see the
test split together, once; arms asked for later are added to those of the record, and see it by
themselves. What is in `results/searching` is not run again; `python -m benchmarks tables` writes
the tables.
`rates` searches at three rates of alpha and judges each by what a fresh prompt of the found lengths
reaches on val200, on two targets and one draw.
"""

import argparse
import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import found_in, new_parser
from benchmarks.placing.moves import RECORDS as PLACED
from benchmarks.placing.moves import TARGETS, Bench
from benchmarks.searching.relaxed import PUBLISHED, RELAXATIONS
from benchmarks.searching.tables import RECORDS
from vprompt import stages
from vprompt.adapters.dpl import BRANCH
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter, Training
from vprompt.learning.train_config import TrainConfig
from vprompt.models.heads import Head
from vprompt.prompts.configurations import random_of_equal_count, shuffled, uniform
from vprompt.prompts.lengths import choose
from vprompt.results import measure
from vprompt.results.records import Records

BUDGETS = (20, 40, 80)
SPEED = 58  # training images per second of one core, for the estimate
SEARCH = 2.6  # times the cost of plain training: alpha's images, and the mixture
ALPHA_RATES = (0.005, 0.02, 0.08)
RATED = ("dtd10", "rsscn7")
JUDGED = 6.0  # seconds to fit a head, validate and test


def main() -> None:
    """Run what is missing, one target and draw after the other."""
    parser = new_parser(__doc__)
    parser.add_argument("phase", choices=("compare", "cost", "rates"))
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget-seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--placed-seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--randoms", type=int, default=2, help="configurations per target and seed")
    parser.add_argument("--search-epochs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, help="Default: what `placing.moves rates` chose.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[70, 112], help="px, for `cost`")
    parser.add_argument("--results", type=Records, default=RECORDS, help="folder of the records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"compare": compare, "cost": cost, "rates": rates}[options.phase](options)


def compare(options: argparse.Namespace) -> None:
    """Search everywhere, then train every configuration and measure all of a case at once."""
    cases = [(target, seed) for seed in options.seeds for target in options.targets]
    print(estimate(options, cases), flush=True)
    for seed in options.seeds:
        for target in options.targets:
            _find(options, target, seed)
        for target in options.targets:  # a control of each is another's configuration
            name = _compared(target, seed)
            before = options.results.read(name) if name in options.results else {}
            arms = _arms(options, target, seed)
            missing = {n: arms[n] for n in arms if n not in before.get("arms", {})}
            if missing:
                found = _joined(before, _compare(Bench(options, target, seed), missing))
                options.results.write(name, found)
                print(name, json.dumps(found["summary"]), f"{found['seconds']} s", flush=True)


def _compared(target: str, seed: int) -> str:
    return f"compare_{target}_seed{seed}"


def _joined(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the arms of an earlier one, which were trained in the same way."""
    if not before:
        return found
    if (before["train"], before["task"]) != (found["train"], found["task"]):
        raise SystemExit("The earlier arms had other data or training: use other --results.")
    seconds = round(before["seconds"] + found["seconds"], 1)
    parts = ("arms", "summary", "test")
    return {**found, **{key: before[key] | found[key] for key in parts}, "seconds": seconds}


def estimate(options: argparse.Namespace, cases: list[tuple[str, int]]) -> str:
    """Say how long the missing part takes, from the number of images that are trained on."""
    searches, moved, trained = 0, 0, 0
    for target, seed in cases:
        plan, known = _plan(options, target, seed), options.results
        missing = [kind for kind, name in plan.items() if name not in known]
        searches += len(missing) - ("placed" in missing)
        moved += "placed" in missing
        arms = 4 + options.randoms + (seed in options.placed_seeds)
        arms += 2 * len(BUDGETS) * (seed in options.budget_seeds)
        name = _compared(target, seed)
        trained += max(0, arms - len(known.read(name)["arms"]) if name in known else arms)
    images = 200 * (searches * SEARCH * options.search_epochs + (trained + moved) * options.epochs)
    seconds = images / SPEED + JUDGED * (searches + moved + trained)
    return (
        f"{searches} searches of {options.search_epochs} epochs, {trained} trainings of "
        f"{options.epochs} and {moved} of PRO-VPT: about {seconds / 60:.0f} minutes of one core"
    )


def _plan(options: argparse.Namespace, target: str, seed: int) -> dict[str, str]:
    """Return the record's name of every search of a target and draw, by its kind."""
    kinds = ["free"]
    kinds += [f"budget{n}" for n in BUDGETS if seed in options.budget_seeds]
    kinds += ["placed"] if seed in options.placed_seeds else []
    return {kind: f"search_{target}_{kind}_seed{seed}" for kind in kinds}


def _find(options: argparse.Namespace, target: str, seed: int) -> None:
    """Run the searches of a target and draw that are missing, and PRO-VPT after them."""
    bench, plan = None, _plan(options, target, seed)
    for kind, name in plan.items():
        if name in options.results:
            continue
        bench = bench or Bench(options, target, seed)
        if kind == "placed":
            found = _place(bench, options.results.read(plan["free"])["found"])
        else:
            budget = None if kind == "free" else int(kind.removeprefix("budget"))
            found = _search(bench, "dpl" if budget is None else f"dpl(max_prompts={budget})")
            found["budget"] = budget
        options.results.write(name, found)
        print(name, found["found"], f"{found['seconds']} s", flush=True)


def _search(bench: Bench, method: str) -> dict[str, Any]:
    """Search on the training images and val200; the test split stays closed."""
    own = {**stages.training_defaults(method), "epochs": bench.options.search_epochs}
    config = TrainConfig.checked({**_training(bench).model_dump(), **own})
    began = time.perf_counter()
    tuned = stages.run_tuning(bench.setting, bench.build(method)(), config)
    bench.setting.forget_checkpoints()
    memory = tuned.adapter.memory
    return bench.record(
        method=method,
        train=config.model_dump(),
        found=memory["found"][-1],
        memory=memory,
        seconds=round(time.perf_counter() - began, 1),
    )


def _place(bench: Bench, found: list[int]) -> dict[str, Any]:
    """Let PRO-VPT move as many tokens as were found, from a uniform start."""
    even = uniform({BRANCH: found}, {BRANCH: 1})[BRANCH]
    if not sum(even):
        return bench.record(method="linear", found=even, seconds=0.0)
    method, began = f"pro_vpt(num_virtual_tokens={even})", time.perf_counter()
    config = _training(bench)
    tuned = stages.run_tuning(bench.setting, bench.build(method)(), config)
    bench.setting.forget_checkpoints()
    place = tuned.adapter.memory["placement"]
    return bench.record(
        method=method,
        train=config.model_dump(),
        found=place["distribution"][-1],
        placement=place,
        seconds=round(time.perf_counter() - began, 1),
    )


def _training(bench: Bench) -> TrainConfig:
    """Return how everything is trained: batches of 16, the last epoch kept, the target's rate."""
    rate = bench.options.lr
    if rate is None:
        rated = found_in(PLACED, f"rates_{bench.target}")
        if not rated:
            raise SystemExit(
                f"No rate for {bench.target}: run `placing.moves rates`, or give --lr."
            )
        rate = rated[0]["lr"]
    return bench.config.model_copy(update={"lr": rate})


def _arms(options: argparse.Namespace, target: str, seed: int) -> dict[str, list[int]]:
    """Return every configuration to train, by name; all but those under a budget have one count."""
    plan, read = _plan(options, target, seed), options.results.read
    searched = {kind: read(name) for kind, name in plan.items()}
    free = searched["free"]
    found, candidates = free["found"], free["memory"]["candidates"]
    whole, widths = {BRANCH: found}, {BRANCH: 1}
    other = options.targets[(options.targets.index(target) + 1) % len(options.targets)]
    elsewhere = read(_plan(options, other, seed)["free"])["memory"]["alpha"][-1]
    scores = torch.tensor(elsewhere).double().log_softmax(1).tolist()
    moved = choose(scores, candidates, sum(found), exact=True)
    arms = {
        "uniform": uniform(whole, widths)[BRANCH],
        "found": found,
        "shuffled": shuffled(whole, seed=seed)[BRANCH],
        "elsewhere": [candidates[index] for index in moved],
    }
    for number in range(options.randoms):
        drawn = random_of_equal_count(whole, candidates, widths, seed=1000 * seed + number)
        arms[f"random {number + 1}"] = drawn[BRANCH]
    if "placed" in searched:
        arms["placed"] = searched["placed"]["found"]
    for budget in BUDGETS if seed in options.budget_seeds else ():
        under = searched[f"budget{budget}"]["found"]
        arms[f"budget {budget}"] = under
        arms[f"uniform {budget}"] = uniform({BRANCH: under}, widths)[BRANCH]
    return arms


def _compare(bench: Bench, arms: dict[str, list[int]]) -> dict[str, Any]:
    """Train a fresh prompt for every configuration, and open the test split once for all."""
    began, candidates, reached = time.perf_counter(), {}, {}
    for name, lengths in arms.items():
        candidates[name], reached[name] = _train(bench, lengths)
    measured = measure.test_accuracy(bench.backbone, bench.whole, candidates)
    bench.setting.forget_checkpoints()
    return bench.record(
        train=_training(bench).model_dump(),
        arms=reached,
        summary={name: found.acc1 for name, found in measured.items()},
        test={name: found.to_json() for name, found in measured.items()},
        seconds=round(time.perf_counter() - began, 1),
    )


def _train(bench: Bench, lengths: list[int]) -> tuple[tuple[Adapter, Head], dict[str, Any]]:
    """Train a fresh prompt of these lengths; return it, and what it reaches on val200."""
    method = f"vpt(num_virtual_tokens={lengths})" if sum(lengths) else "linear"
    tuned = stages.run_tuning(bench.setting, bench.build(method)(), _training(bench))
    last = tuned.record(tuned.kept_epoch)
    reached = {
        "lengths": lengths,
        "tokens": sum(lengths),
        "val_accuracy": last.val_accuracy,
        "val_loss": last.val_loss,
        "train_loss": last.train_loss,
    }
    return (tuned.adapter, tuned.head), reached


def rates(options: argparse.Namespace) -> None:
    """Search at several rates of alpha; val200 alone says which lengths are better."""
    seed = options.seeds[0]
    for target in [name for name in options.targets if name in RATED]:
        bench = None
        for rate in ALPHA_RATES:
            name = f"rate_{target}_{rate:g}_seed{seed}"
            if name in options.results:
                continue
            bench = bench or Bench(options, target, seed)
            found = _search(bench, f"dpl(alpha_lr={rate})")
            _, reached = _train(bench, found["found"])
            bench.setting.forget_checkpoints()
            options.results.write(name, {**found, "alpha_lr": rate, "reached": reached})
            print(name, found["found"], reached["val_accuracy"], flush=True)


def cost(options: argparse.Namespace) -> None:
    """Time the steps of VPT-Deep, of the search, and of the relaxation as published, in turns."""
    for size in options.sizes:
        record = f"cost_{size}px"
        if record in options.results:
            continue
        bench = Bench(options, options.targets[0], options.seeds[0], size)
        check_alike(bench)
        spent: dict[str, dict[str, list[float]]] = {}
        for _ in range(2):
            for name, adapter in _timed(bench).items():
                times = spent.setdefault(name, {"wall": [], "cpu": []})
                for key, values in _step_times(bench, adapter).items():
                    times[key] += values
        middle = {
            name: {key: statistics.median(values) for key, values in times.items()}
            for name, times in spent.items()
        }
        plain = middle["vpt"]
        over = {n: {k: v / plain[k] for k, v in times.items()} for n, times in middle.items()}
        found = bench.record(seconds=spent, median=middle, over_vpt=over)
        options.results.write(record, found)
        print(size, json.dumps(over, indent=2), flush=True)


def _timed(bench: Bench) -> dict[str, Adapter]:
    """Return what is timed, made anew: plain VPT, the search, and its mixture as explicit sums."""
    resting, moving = "dpl(alpha_warmup=0.99)", "dpl(alpha_warmup=0.0)"
    found = {
        "vpt": bench.build("vpt")(),
        "search": bench.build(moving)(),
        "search, prompts' step alone": bench.build(resting)(),
        "search, nested": bench.build("dpl(bank=nested, alpha_warmup=0.0)")(),
    }
    found |= {name: relax(bench.build(moving)()) for name, relax in RELAXATIONS.items()}
    published = RELAXATIONS[PUBLISHED](bench.build(resting)())
    return {**found, f"{PUBLISHED}, prompts' step alone": published}


def check_alike(bench: Bench) -> None:
    """Stop unless all forms of the mixture give the same features: else times mean nothing."""
    pixels, _ = next(bench.setting.train.batches(4))
    images, features = bench.backbone.normalise(pixels), {}
    for name, relax in {"exact": lambda search: search, **RELAXATIONS}.items():
        search = relax(bench.build("dpl(lengths=[0, 2, 5], alpha_init=1.0)")())
        with torch.no_grad():
            features[name] = search.features(images, generator=torch.Generator())
    for name, value in features.items():
        apart = float((value - features["exact"]).norm() / features["exact"].norm())
        if apart > 1e-4:
            raise SystemExit(f"{name!r} differs from the exact mixture by {apart:.1e}.")


def _step_times(bench: Bench, adapter: Adapter) -> dict[str, list[float]]:
    """Return wall and processor seconds of whole steps of 64 images, alpha's part included."""
    marks: list[tuple[float, float]] = []
    begin = adapter.begin_step

    def mark(training: Training) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    def before(training: Training) -> None:
        mark(training)
        begin(training)

    adapter.begin_step, adapter.end_epoch = before, mark  # type: ignore[method-assign]
    few = {name: _first(getattr(bench.setting, name), 192) for name in ("train", "val")}
    setting = replace(bench.setting, **few)
    stages.run_tuning(setting, adapter, TrainConfig(epochs=2, keep="last"))
    setting.forget_checkpoints()
    found: dict[str, list[float]] = {"wall": [], "cpu": []}
    for index, (start, end) in enumerate(itertools.pairwise(marks)):
        if index and index % 4 < 3:  # the first warms up, every fourth is between two epochs
            found["wall"].append(end[0] - start[0])
            found["cpu"].append(end[1] - start[1])
    return found


def _first(examples: Examples, count: int) -> Examples:
    return Examples(examples.pixels[:count], examples.labels[:count], f"{examples.digest}, {count}")


if __name__ == "__main__":
    main()
