"""What moving costs: epochs of VPT-Deep and of PRO-VPT's presets, for `placing.moves cost`."""

import itertools
import json
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vprompt import stages
from vprompt.learning.adapter import Training
from vprompt.results.records import Records

if TYPE_CHECKING:
    from benchmarks.placing.moves import Bench


def measure(bench: "Bench", results: Records) -> None:
    """Time epochs of all in turns, and of two against their own unscored steps."""
    whole, inside = "cost", "within_epochs"
    if inside not in results:
        # Whole epochs drift apart by more than a few per cent, so these are held against their own.
        names = ["vpt", "pro_vpt(window=[0.0, 1.0])"] * 3
        shares: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            shares[name] += _within_epochs(bench, name)
        results.write(inside, bench.record(over_plain_steps=shares))
        print({name: statistics.median(values) for name, values in shares.items()}, flush=True)
    if whole in results:
        return
    arms = {
        "vpt": "vpt",
        "vpt, dropout": "vpt(prompt_dropout=0.1)",
        "robust": "pro_vpt(window=[0.0, 1.0])",
        "robust, every step": "pro_vpt(window=[0.0, 1.0], score_every=1)",
        "paper": "pro_vpt(preset=paper, num_virtual_tokens=10)",
    }
    spent: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in arms}
    for _ in range(3):
        for name, method in arms.items():
            for key, values in _epoch_times(bench, method).items():
                spent[name][key] += values
    middle = {n: {k: statistics.median(v) for k, v in times.items()} for n, times in spent.items()}
    over = {n: {k: v / middle["vpt"][k] for k, v in times.items()} for n, times in middle.items()}
    found = bench.record(methods=arms, seconds=spent, median=middle, over_vpt=over)
    results.write(whole, found)
    print(json.dumps(over, indent=2), flush=True)


def _epoch_times(bench: "Bench", method: str) -> dict[str, list[float]]:
    """Return wall and processor seconds of four epochs, scoring and moves included."""
    adapter = bench.build(method)()
    begin, end, began = adapter.begin_epoch, adapter.end_epoch, []
    found: dict[str, list[float]] = {"wall": [], "cpu": []}

    def before(training: Training) -> None:
        began[:] = [time.perf_counter(), time.process_time()]
        begin(training)

    def after(training: Training) -> None:
        end(training)
        if 1 < training.epoch < training.epochs:  # the first warms up, the last is never scored
            found["wall"].append(time.perf_counter() - began[0])
            found["cpu"].append(time.process_time() - began[1])

    adapter.begin_epoch, adapter.end_epoch = before, after
    setting = replace(bench.setting, val=None)
    stages.run_tuning(setting, adapter, bench.config.model_copy(update={"epochs": 6}))
    setting.forget_checkpoints()
    return found


def _within_epochs(bench: "Bench", method: str) -> list[float]:
    """Return the time of four epochs, each over that of as many of its own unscored steps."""
    adapter, found = bench.build(method)(), []
    begin, step, end = adapter.begin_epoch, adapter.begin_step, adapter.end_epoch
    marks: list[tuple[bool, float]] = []

    def before(training: Training) -> None:
        marks[:] = [(True, time.perf_counter())]
        begin(training)

    def each(training: Training) -> None:
        began = time.perf_counter()
        step(training)
        marks.append((getattr(adapter, "probe", None) is not None, began))

    def after(training: Training) -> None:
        marks.append((True, time.perf_counter()))
        end(training)
        if 1 < training.epoch < training.epochs:
            steps = list(itertools.pairwise(marks[1:]))[:-1]  # the last has fewer images
            plain = statistics.median(b - a for (scored, a), (_, b) in steps if not scored)
            full = len(training.train) / training.batch_size
            found.append((time.perf_counter() - marks[0][1]) / (full * plain))

    adapter.begin_epoch, adapter.begin_step, adapter.end_epoch = before, each, after
    setting = replace(bench.setting, val=None)
    stages.run_tuning(setting, adapter, bench.config.model_copy(update={"epochs": 6}))
    setting.forget_checkpoints()
    return found
