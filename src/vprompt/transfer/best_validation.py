"""Best on validation: an oracle, all weight on the source that is best on held-out images.

It uses labels that a method which weighs by the training images must do without, so it is no rival
but a line to compare with. It never sees the test split.
"""

import torch
from torch.nn import functional

from vprompt.errors import VPromptError
from vprompt.evidence import Evidence
from vprompt.heads import closed_form
from vprompt.mix import Mix, Plan


def plan() -> Plan:
    """Ask for the features of the validation images."""
    return Plan(validation=True)


def weigh(evidence: Evidence) -> Mix:
    """Return a one for the source whose closed-form head is the most accurate on validation.

    Ties go to the smaller log-loss.
    """
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
