"""Refitting: the head fitted anew in closed form on what training made of the features.

A head that is trained beside a prompt lags behind it or runs ahead of it. Where `head=refitted`,
a head is fitted on the features that training ended with, as the head of the start was, and the
better of the two on validation images is kept; the fitted one where there are none.
"""

from collections.abc import Callable

from torch import Tensor

from vprompt.core.types import Features
from vprompt.data.task import Examples
from vprompt.learning.classifier import Classifier, compute_features
from vprompt.learning.goals import Goal
from vprompt.learning.train_config import TrainConfig
from vprompt.models.heads import Head


def refitted(
    classifier: Classifier,
    goal: Goal,
    train: Examples,
    val: Examples | None,
    config: TrainConfig,
    trained: Callable[[Features], Tensor],
) -> Head | None:
    """Return the head fitted anew, or None where the `trained` one, given by its logits, is kept.

    The labels are those of `goal`'s inside, and so is the head.
    """
    if config.head != "refitted" or classifier.weight is None:
        return None
    features = compute_features(classifier.adapter, train, config)
    found = goal.closed_form(features, train.labels)
    if val is None:
        return found
    seen = compute_features(classifier.adapter, val, config)
    better = _rank(goal, found.logits(seen).float(), val) > _rank(goal, trained(seen), val)
    return found if better else None


def _rank(goal: Goal, logits: Tensor, val: Examples) -> tuple[float, float]:
    """Return what of a larger one a head is better: its quality, then its loss."""
    judged = goal.judge(logits, val.labels)
    quality = judged.score if judged.measure else judged.accuracy
    return quality or 0.0, -judged.loss
