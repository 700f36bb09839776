"""What does `learning.curves` with `learning.places` cost? One epoch of every method.

    python -m benchmarks learning.cost --data DIR --models DIR

Seconds of one core (processor time of one thread) of one epoch and its validation, and of what
comes before and after the epochs, on the first task; then all runs together, if none ended early,
and if all ended after half of their epochs. Nothing is written, and no test image is seen.
"""

import argparse
import contextlib
import time
from typing import Any

import torch

from benchmarks.learning import common as learning
from benchmarks.learning.common import Case
from benchmarks.learning.curves import ARMS as CURVES
from benchmarks.learning.places import MOVING, SEARCH_EPOCHS, USUAL, recipe
from vprompt.learning.adapter import Training
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import tune

# Alpha rests in the first epochs of a search; here it moves from the first step on.
SEARCH = "dpl(max_prompts={tokens}, alpha_warmup=0.0)"


class _EnoughError(Exception):
    """The first epoch is over."""


def main() -> None:
    """Measure, and add up."""
    options = learning.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    backbone = learning.open_model(options)
    case = Case(options, backbone, options.targets[0], options.seeds[0])
    total, half = 0.0, 0.0
    for name, (method, own, count) in _work(options, learning.TOKENS * backbone.depth).items():
        fixed, epoch = one_epoch(case, method, **own)
        epochs = own.get("epochs", options.epochs)
        runs = count * len(options.targets)
        total += runs * (fixed + epochs * epoch)
        half += runs * (fixed + epochs * epoch / (1 if name == "search" else 2))
        print(
            f"{name}: {epoch:.2f} s an epoch, {fixed:.2f} s a run beside, {runs} runs of at most "
            f"{epochs} epochs",
            flush=True,
        )
    print(
        f"{total / 60:.0f} minutes of one core if nothing ends early, {half / 60:.0f} if all end "
        "after half of their epochs"
    )


def _work(options: argparse.Namespace, tokens: int) -> dict[str, tuple[str, dict[str, Any], int]]:
    """Return every kind of run: its method, what differs in training, and how many a task has."""
    seeds = len(options.seeds)
    work = {
        arm: (method, {name: rates[0]}, seeds + len(rates) - 1)
        for arm, (method, name, rates) in CURVES.items()
    }
    work |= {arm: (MOVING[arm], {}, seeds) for arm in USUAL if arm in MOVING}
    work["paper"] = (MOVING["paper"], recipe(), seeds)
    training = {"epochs": SEARCH_EPOCHS, "patience": 0, "keep": "last"}
    work["search"] = (SEARCH.format(tokens=tokens), training, seeds)
    work["found, uniform, random"] = (CURVES["vpt"][0], {}, 3 * seeds)
    return work


def one_epoch(case: Case, method: str, **own: Any) -> tuple[float, float]:
    """Return the processor seconds of what stands beside the epochs of a run, and of one epoch.

    Beside stand the first head, the one fitted anew, and the test; each sees the images it needs.
    """
    adapter, marks = case.build(method), []
    begin = adapter.begin_epoch

    def before(training: Training) -> None:
        marks.append(time.process_time())
        if training.epoch > 1:
            raise _EnoughError
        begin(training)

    adapter.begin_epoch = before  # type: ignore[method-assign]
    setting = case.setting
    config = TrainConfig.checked({**case.config.model_dump(), **own})
    classes = len(setting.task.classes)
    began = time.process_time()
    with contextlib.suppress(_EnoughError):
        tune(adapter, setting.train, setting.val, classes, config)
    start, seen = marks[0] - began, len(setting.train) + len(setting.val or ())
    test = start * len(setting.task.test or ()) / seen
    return 2 * start + test, marks[1] - marks[0]


if __name__ == "__main__":
    main()
