"""Best on validation: an oracle, all weight on the source that is best on held-out images.

It uses labels that a method which weighs by the training images must do without, so it is no rival
but a line to compare with. It never sees the test split.
"""

import torch
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.settings import Settings, takes
from vprompt.learning.adapter import Adapter
from vprompt.models.heads import closed_form
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import EVERY_SOURCE, Mix, Plan, TuningStart
from vprompt.transfer._trial import best_once_tuned


class BestValidation(Settings):
    """The settings.

    By itself it is a probe of prompts as they are. `tuned` is the oracle in full: every source is
    tuned on the target, at the price of as many trainings, and the one that ends best on validation
    is kept.
    """

    tuned: bool = False


@takes(BestValidation)
def plan(settings: BestValidation) -> Plan:
    """Ask for the features of the validation images, and perhaps for a training of every source."""
    return Plan(validation=True, trainings=EVERY_SOURCE if settings.tuned else 0)


@takes(BestValidation)
def weigh(evidence: Evidence, settings: BestValidation) -> Mix:
    """Return a one for the source whose closed-form head is the most accurate on validation.

    Ties go to the smaller log-loss.
    """
    del settings  # for `adapter`
    if evidence.val_features is None or evidence.val_labels is None:
        raise VPromptError("best_validation needs validation images, but the evidence has none.")
    classes = int(torch.cat([evidence.labels, evidence.val_labels]).max()) + 1
    accuracies, losses = [], []
    for train, val in zip(evidence.features, evidence.val_features, strict=True):
        logits = closed_form(train, evidence.labels, classes).logits(val.float())
        accuracies.append((logits.argmax(1) == evidence.val_labels).double().mean().item())
        losses.append(functional.cross_entropy(logits.double(), evidence.val_labels).item())
    best = max(range(len(losses)), key=lambda row: (accuracies[row], -losses[row]))
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[best] = 1.0
    return Mix(weights, facts={"oracle": "chosen on validation", "val_accuracies": accuracies})


@takes(BestValidation)
def adapter(start: TuningStart, mix: Mix, settings: BestValidation) -> tuple[Adapter, Mix] | None:
    """Return the source that is best on validation once it is tuned, of all."""
    if not settings.tuned:
        return None
    rows = range(len(mix.weights))
    return best_once_tuned(
        start, mix, rows, method="best_validation(tuned=True)", instead="best_validation"
    )
