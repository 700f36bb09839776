"""Trial: tune several sources on the target, each by itself, and keep the best on validation."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from vprompt.core.errors import VPromptError
from vprompt.learning.adapter import Adapter, PromptAdapter
from vprompt.pooling.mix import Mix, TuningStart


def best_once_tuned(
    start: TuningStart, mix: Mix, rows: Sequence[int], *, method: str, instead: str
) -> tuple[Adapter, Mix]:
    """Return the source of `rows` that is best on validation once it is tuned, and its mix.

    It costs as many trainings as there are rows. Ties go to the smaller log-loss. Raises
    VPromptError, which names `method` and what to use `instead`, where nothing was held out.
    """
    if start.val is None:
        raise VPromptError(
            f"{method} chooses on validation images, but there are none. Use {instead}."
        )
    reached: dict[int, tuple[float, float]] = {}
    for row in rows:
        tuned = start.tune(PromptAdapter(start.backbone, start.prompts[row]))
        kept = tuned.record(tuned.kept_epoch)
        reached[row] = (kept.val_accuracy or 0.0, -(kept.val_loss or 0.0))
    best = max(reached, key=lambda row: reached[row])
    weights = torch.zeros_like(mix.weights)
    weights[best] = 1.0
    accuracies = {start.names[row]: accuracy for row, (accuracy, _) in reached.items()}
    facts = {**mix.facts, "val_accuracies": accuracies}
    # The same training once more: it finds its own finished state and costs nothing.
    chosen = PromptAdapter(start.backbone, start.prompts[best])
    return chosen, replace(mix, weights=weights, facts=facts)
