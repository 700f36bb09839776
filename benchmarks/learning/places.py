"""Do places and searched lengths help where prompts learn? PRO-VPT and DPL against VPT-Deep.

    python -m benchmarks learning.places --data DIR --models DIR

Needs the records of `learning.curves`, whose images, seeds, epochs, patience and rates of
VPT-Deep it takes; its VPT-Deep is the reference here and is not run again. All arms have as many
tokens, or fewer where the search wants fewer:

- `robust`: PRO-VPT as it is by default here; `paper`: the published preset with its own recipe
  (SGD at 2.5, constant, clipped, batches of 64, a random head), but the epochs, the patience and
  the kept epoch of all; `paper_rates`: the published preset with the optimiser and rate of all.
- `search`: DPL robust within the tokens of VPT-Deep, on the training images, with the validation
  images as alpha's. Then a fresh prompt of the `found` lengths, and of as many tokens spread
  evenly (`uniform`) and at `random`; with `--arms shuffled` also the found lengths at other blocks,
  and with `--arms paper_start` VPT-Deep from the start and the dropout of the published preset.

The test split is opened once for every run, at its end; the search never opens it.
"""

import argparse
from functools import partial
from typing import Any

from benchmarks.learning import common as learning
from benchmarks.learning.common import TOKENS, Case, described
from benchmarks.learning.curves import rate_of
from vprompt.adapters.dpl import BRANCH
from vprompt.adapters.pro_vpt import PAPER_TRAINING
from vprompt.prompts.configurations import random_of_equal_count, shuffled, uniform
from vprompt.stages import training_defaults

SEARCH_EPOCHS = 20
MOVING = {
    "robust": "pro_vpt",
    "paper": "pro_vpt(preset=paper)",
    "paper_rates": "pro_vpt(preset=paper)",
    "paper_start": "vpt(prompt_init=vpt_uniform, prompt_dropout=0.1)",
}
LENGTHS = ("found", "uniform", "random", "shuffled")
USUAL = ["robust", "paper", "paper_rates", "search", "found", "uniform", "random"]
ARMS = [*USUAL, "shuffled", "paper_start"]
# What a budget fixes for all arms, whatever their recipe.
_EQUAL = ("epochs", "keep")


def main() -> None:
    """Run what is missing."""
    made = learning.parser(__doc__)
    made.add_argument("--arms", nargs="+", default=USUAL, choices=ARMS)
    made.add_argument("--search-epochs", type=int, default=SEARCH_EPOCHS)
    run(made.parse_args())


def run(options: argparse.Namespace) -> None:
    """Train every arm on every task and seed; those of lengths come after their search."""
    for case in learning.cases(options):
        arms = [arm for arm in ARMS if arm in options.arms]
        learning.run_missing(case, {arm: partial(train, arm=arm) for arm in arms})


def train(case: Case, arm: str) -> dict[str, Any]:
    """Run one arm and return its record."""
    if arm == "search":
        return _search(case)
    if arm in LENGTHS:
        return _of_lengths(case, arm)
    own = recipe() if arm == "paper" else {"lr": rate_of(case, "vpt")}
    learned = case.train(MOVING[arm], **own)
    place = learned.tuned.adapter.memory.get("placement")
    return case.finish(arm, learned, placement=place and _placement(place))


def recipe() -> dict[str, Any]:
    """Return the recipe of PRO-VPT's released code, but for what is equal for all arms."""
    return {key: value for key, value in PAPER_TRAINING.items() if key not in _EQUAL}


def search_of(case: Case) -> tuple[str, dict[str, Any]]:
    """Return the search with its settings, and how it is trained."""
    method = f"dpl(max_prompts={TOKENS * case.backbone.depth})"
    own = {"epochs": case.options.search_epochs, "patience": 0, "lr": rate_of(case, "vpt")}
    return method, {**training_defaults(method), **own}


def _search(case: Case) -> dict[str, Any]:
    """Search on training images and alpha's; no test image, and no head is fitted anew."""
    method, own = search_of(case)
    learned = case.train(method, refit=False, **own)
    memory = learned.tuned.adapter.memory
    story = {
        "candidates": memory["candidates"],
        "found_by_epoch": memory["found"],
        "alpha": [[round(value, 4) for value in row] for row in memory["alpha"][-1]],
        "gap": memory["gap"],
    }
    return case.write("search", {**described(learned), "found": memory["found"][-1], **story})


def _of_lengths(case: Case, arm: str) -> dict[str, Any]:
    """Train a fresh prompt of found lengths, or of a control with as many tokens."""
    searched = case.known("search")
    if searched is None:
        raise SystemExit(f"{arm} on {case.target} needs the arm `search` first.")
    lengths = lengths_of(arm, searched["found"], searched["candidates"], case.seed)
    same = {"lengths": lengths, "tokens": sum(lengths)}
    if lengths == [TOKENS] * len(lengths):  # that is VPT-Deep, with the same bits
        reference = case.known("vpt")
        assert reference is not None
        shared = ("grid", "target", "seed", "arm", "setup", "machine", "backbone", "splits")
        kept = {key: value for key, value in reference.items() if key not in shared}
        return case.write(arm, {**kept, **same, "same_as": "vpt"})
    method = f"vpt(num_virtual_tokens={lengths})" if sum(lengths) else "linear"
    return case.finish(arm, case.train(method, lr=rate_of(case, "vpt")), **same)


def lengths_of(arm: str, found: list[int], candidates: list[int], seed: int) -> list[int]:
    """Return the lengths of an arm, of as many tokens as were found."""
    whole, widths = {BRANCH: found}, {BRANCH: 1}
    if arm == "found":
        return found
    if arm == "uniform":
        return uniform(whole, widths)[BRANCH]
    if arm == "shuffled":
        return shuffled(whole, seed=seed)[BRANCH]
    return random_of_equal_count(whole, candidates, widths, seed=1000 * seed)[BRANCH]


def _placement(place: dict[str, Any]) -> dict[str, Any]:
    """Return how many tokens moved, and where all stood after every epoch."""
    return {
        "moves": sum(decision["moved"] for decision in place["decisions"]),
        "distribution": place["distribution"],
    }


if __name__ == "__main__":
    main()
