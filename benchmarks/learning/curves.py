"""Where do prompts learn? Curves of the linear probe, VPT-Deep, LoRA and full fine-tuning.

    python -m benchmarks learning.curves --data DIR --models DIR

The backbone is `vit_tiny_patch16_224` at 64 px (ImageNet-21k, then ImageNet-1k), one thread a
process. The learning rate of every method and task is chosen on the validation images of the first
seed: all rates are trained in full, and the best opens the test split, the others never. The
other seeds take that rate. Every run also fits its head anew, in closed form, on the features that
training ended with; which of the two heads is better is decided on validation. `learning.common`
says what all runs have in common, `learning.places` goes on, `learning.tables` writes the tables.
"""

import argparse
from functools import partial
from typing import Any

from benchmarks.learning import common as learning
from benchmarks.learning.common import Case, Learned, described
from vprompt.core.errors import VPromptError

# Every arm: its method, what its rates are rates of, and those to choose from.
ARMS: dict[str, tuple[str, str, list[float]]] = {
    "linear": ("linear", "head_lr", [3e-4, 1e-3, 3e-3]),
    "vpt": (f"vpt(num_virtual_tokens={learning.TOKENS})", "lr", [5e-3, 3e-2, 1e-1]),
    "lora": ("lora", "lr", [1e-3, 3e-3]),
    "full": ("full", "lr", [1e-4, 3e-4]),
}


def main() -> None:
    """Run what is missing."""
    run(learning.parser(__doc__).parse_args())


def run(options: argparse.Namespace) -> None:
    """Train every method on every task and seed."""
    for case in learning.cases(options):
        arms = {arm: partial(_first if _chooses(case) else _later, arm=arm) for arm in ARMS}
        learning.run_missing(case, arms)


def rate_of(case: Case, arm: str) -> float:
    """Return the rate that was chosen for an arm on the first seed of a task."""
    found = Case(case.options, case.backbone, case.target, case.options.seeds[0]).known(arm)
    if found is None:
        raise SystemExit(f"No rate of {arm} on {case.target}: run learning_curves.py first.")
    return float(found["train_config"][ARMS[arm][1]])


def _chooses(case: Case) -> bool:
    return case.seed == case.options.seeds[0]


def _first(case: Case, arm: str) -> dict[str, Any]:
    """Train at every rate, and finish the best on validation; in a tie the smaller rate.

    A rate at which the loss becomes no number is told, and is none of those to choose from.
    """
    method, name, rates = ARMS[arm]
    tried: list[Learned] = []
    for rate in rates:
        try:
            tried.append(case.train(method, **{name: rate}))
        except VPromptError as error:
            print(f"{case.target}, {arm}, {name} {rate:g}: {error}", flush=True)
    if not tried:
        raise VPromptError(f"{arm} could be trained at none of its rates.")
    best = max(tried, key=lambda learned: learned.rank)
    return case.finish(arm, best, grid=[described(learned) for learned in tried])


def _later(case: Case, arm: str) -> dict[str, Any]:
    """Train at the rate of the first seed."""
    method, name, _ = ARMS[arm]
    return case.finish(arm, case.train(method, **{name: rate_of(case, arm)}))


if __name__ == "__main__":
    main()
