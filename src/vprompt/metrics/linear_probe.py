"""Linear probe: held-out accuracy of the closed-form head that `learn` and `combine` start from."""

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous
from vprompt.models.heads import closed_form

RANGE = (-float("inf"), 1.0)


def score(features: Features, labels: Labels, *, measure: str = "loss", folds: int = 5) -> float:
    """Return minus the cross-validated log-loss, or with `measure=accuracy` the accuracy.

    Higher is better. With few images the loss tells sources apart more surely.
    """
    index, classes = contiguous(labels)
    head = closed_form(features, index, classes, folds=folds)
    if measure == "loss":
        found = -head.cv_loss
    elif measure == "accuracy":
        found = head.cv_accuracy
    else:
        raise VPromptError(f"measure is `loss` or `accuracy`, but got {measure!r}.")
    if found != found:
        raise VPromptError("A linear probe needs a class with at least two images to hold one out.")
    return found
