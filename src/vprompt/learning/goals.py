"""Goals: what training is after, by the kind of target: a loss, a judgement, a head to start from.

The training loop asks a goal and knows of no kind of target itself.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest
from vprompt.core.types import Features
from vprompt.data.targets import CLASS, NUMBER, SEVERAL
from vprompt.data.task import Examples, Task
from vprompt.models import ridges
from vprompt.models.heads import Head, closed_form

BALANCED = "balanced accuracy"
MAP, R2 = "mAP", "R2"


@dataclass(frozen=True)
class Judged:
    """What is seen on validation images: a loss, and what of a larger one is better.

    `measure` names the `score` where epochs are not compared by their accuracy. A score is None
    where the images do not define one, as where no image shows any class.
    """

    loss: float
    accuracy: float | None = None
    score: float | None = None
    measure: str = ""


class Goal(abc.ABC):
    """One kind of target of one task; `outputs` is how many numbers its head gives an image."""

    target: ClassVar[str]
    measure: ClassVar[str]

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    @abc.abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, with its graph."""

    @abc.abstractmethod
    def judge(self, logits: Tensor, labels: Tensor) -> Judged:
        """Return how well `logits` `[images, outputs]` do on images that were not learned from."""

    @abc.abstractmethod
    def closed_form(self, features: Features, labels: Tensor) -> Head:
        """Return the head that is fitted in closed form."""

    def inside(self, examples: Examples) -> Examples:
        """Return examples as the loss reads their labels."""
        return examples

    def outside(self, head: Head) -> Head:
        """Return a head that was trained with `inside` labels as one that answers people."""
        return head

    def chosen(self, head: Head, logits: Tensor, labels: Tensor) -> Head:
        """Return a head after what is chosen on validation images once training is over."""
        del logits, labels
        return head

    @property
    def chooses(self) -> bool:
        """Whether `chosen` looks at validation images."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return what determines training beside labels and settings; JSON-able."""
        return {"target": self.target}


class OneClass(Goal):
    """One class an image: cross-entropy, each image by the weight of its class where there is one.

    Weights have mean 1 over the training images, so that rates mean what they do without. Epochs
    are then compared by balanced accuracy, the mean share of right answers of each class.
    """

    target, measure = CLASS, "accuracy"

    def __init__(self, outputs: int, weights: Tensor | None = None) -> None:
        super().__init__(outputs)
        self.weights = weights

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of cross-entropies, times the weights."""
        if self.weights is None:
            return functional.cross_entropy(logits, labels)
        each = functional.cross_entropy(logits, labels, reduction="none")
        return (each * self.weights.to(each)[labels]).mean()

    def judge(self, logits: Tensor, labels: Tensor) -> Judged:
        """Return accuracy and cross-entropy; with weights, balanced accuracy as well."""
        right = (logits.argmax(1) == labels).double()
        if self.weights is None:
            loss = functional.cross_entropy(logits.double(), labels).item()
            return Judged(loss, right.mean().item())
        weights = self.weights.double()
        loss = functional.cross_entropy(logits.double(), labels, weight=weights).item()
        recalls = [right[labels == label].mean() for label in labels.unique()]
        balanced = torch.stack(recalls).mean().item()
        return Judged(loss, right.mean().item(), balanced, BALANCED)

    def closed_form(self, features: Features, labels: Tensor) -> Head:
        """Return the calibrated head, with the logarithm of each class's weight on its logit.

        Where `p` are the probabilities of the plain loss, those of the weighted one are in
        proportion to `w p`.

        Reference: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021,
        arXiv 2007.07314.
        """
        head = closed_form(features, labels, self.outputs)
        if self.weights is None:
            return head
        seen = labels.bincount(minlength=self.outputs) > 0
        moved = torch.where(seen, self.weights.log(), torch.zeros_like(self.weights))
        return replace(head, bias=head.bias + moved.to(head.bias))

    def identity(self) -> dict[str, Any]:
        """Add the weights; all else is said by the settings and the labels."""
        return {} if self.weights is None else {"class_weights": self.weights.tolist()}


class Several(Goal):
    """Several classes an image: binary cross-entropy of each, judged by mean average precision."""

    target, measure = SEVERAL, MAP

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over images and classes."""
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits))

    def judge(self, logits: Tensor, labels: Tensor) -> Judged:
        """Return the loss, and the mean average precision over the classes that occur."""
        loss = functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
        found = [each for each in average_precisions(logits, labels) if each is not None]
        score = sum(found) / len(found) if found else None
        return Judged(loss.item(), score=score, measure=MAP)

    def closed_form(self, features: Features, labels: Tensor) -> Head:
        """Return the ridge regression on 0 and 1, as probabilities."""
        return ridges.for_several(features, labels)

    def outside(self, head: Head) -> Head:
        """Return a head of probabilities, each compared with a half until thresholds are chosen."""
        return replace(head, sigmoid=True, thresholds=torch.full((self.outputs,), 0.5))

    def chosen(self, head: Head, logits: Tensor, labels: Tensor) -> Head:
        """Return the head with the thresholds of the largest F1 on validation images."""
        return replace(head, thresholds=best_thresholds(logits.sigmoid(), labels))

    @property
    def chooses(self) -> bool:
        """It does: thresholds."""
        return True


class Number(Goal):
    """A number an image: squared error, in units of the standard deviation of those learned from.

    Inside training the numbers have mean 0 and variance 1, so that rates mean what they do for
    classes; the head that comes out gives the numbers themselves.
    """

    target, measure = NUMBER, R2

    def __init__(self, mean: float, spread: float) -> None:
        super().__init__(1)
        self.mean, self.spread = mean, spread

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error."""
        return functional.mse_loss(logits[:, 0], labels.to(logits))

    def judge(self, logits: Tensor, labels: Tensor) -> Judged:
        """Return the loss, and R2: the share of the images' variance that is explained."""
        error = (logits[:, 0].double() - labels.double()).square()
        variance = (labels.double() - labels.double().mean()).square().sum()
        score = 1 - (error.sum() / variance).item() if variance > 0 else None
        return Judged(error.mean().item(), score=score, measure=R2)

    def closed_form(self, features: Features, labels: Tensor) -> Head:
        """Return the ridge regression."""
        return ridges.for_numbers(features, labels)

    def inside(self, examples: Examples) -> Examples:
        """Return examples whose numbers have mean 0 and variance 1 over the training images."""
        return replace(examples, labels=(examples.labels.double() - self.mean) / self.spread)

    def outside(self, head: Head) -> Head:
        """Return the head whose output is the number itself."""
        return replace(ridges.numbered(head, self.mean, self.spread), numbers=True)


def of(task: Task, labels: Tensor, weights: str | Mapping[str, float] = "none") -> Goal:
    """Return the goal of a task with these training labels and the class weights asked for."""
    check(task, weights)
    if task.target == SEVERAL:
        return Several(len(task.classes))
    if task.target == NUMBER:
        spread = labels.double().std(correction=0).item()
        return Number(labels.double().mean().item(), spread or 1.0)
    return OneClass(len(task.classes), weights_of(task.classes, labels, weights))


def check(task: Task, weights: str | Mapping[str, float]) -> None:
    """Raise VPromptError where class weights do not go with a task."""
    if task.target == CLASS:
        check_weights(task.classes, weights)
    elif weights != "none":
        raise VPromptError(
            f"--class-weights {weights} is for one class an image, and task {task.name!r} has the "
            f"target `{task.target}`. Leave --class-weights out."
        )


def check_weights(classes: tuple[str, ...], weights: str | Mapping[str, float]) -> None:
    """Raise VPromptError where a class is weighed that the task does not have."""
    unknown = [] if isinstance(weights, str) else [n for n in weights if n not in classes]
    if unknown:
        known = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        raise VPromptError(
            f"--class-weights weighs {unknown[0]!r}, and the task has no such class."
            f"{suggest(unknown[0], classes)} It has: {known}. Classes that are left out weigh 1."
        )


def weights_of(
    classes: tuple[str, ...], labels: Tensor, weights: str | Mapping[str, float]
) -> Tensor | None:
    """Return a weight for each class, with mean 1 over the training images; None without weights.

    `balanced` gives every class that occurs the same say: images / (classes * images of the class).
    """
    if weights == "none":
        return None
    check_weights(classes, weights)
    counts = labels.bincount(minlength=len(classes)).double()
    if isinstance(weights, str):
        present = counts > 0
        even = len(labels) / (present.sum() * counts.clamp_min(1))
        return torch.where(present, even, torch.ones_like(even)).float()
    asked = torch.tensor([float(weights.get(name, 1.0)) for name in classes]).double()
    return (asked * len(labels) / (asked * counts).sum()).float()


def average_precisions(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Return the average precision of every class, None of one that no image shows.

    `scores` and `labels` are `[images, classes]`; it is scikit-learn's, which does not interpolate.
    """
    from sklearn.metrics import average_precision_score

    found: list[float | None] = []
    for said, shown in zip(scores.double().numpy().T, labels.numpy().T, strict=True):
        there = shown > 0.5
        found.append(float(average_precision_score(there, said)) if there.any() else None)
    return found


def best_thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return for each class the probability from which on F1 is largest on these images.

    It lies in the middle between two images' probabilities; of equal ones the nearest to a half is
    taken. A class that none of the images shows, or all of them, keeps a half.
    """
    from sklearn.metrics import precision_recall_curve

    found = torch.full((labels.shape[1],), 0.5)
    for row, (said, shown) in enumerate(
        zip(probabilities.double().numpy().T, labels.numpy().T, strict=True)
    ):
        there = shown > 0.5
        if not there.any() or there.all():
            continue
        precision, recall, edges = precision_recall_curve(there, said)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        below = np.concatenate([[0.0], edges[:-1]])
        middles = (edges + below) / 2
        best = np.flatnonzero(f1[:-1] >= f1[:-1].max() - 1e-12)
        nearest = best[np.abs(middles[best] - 0.5).argmin()]
        found[row] = round(float(middles[nearest]), 6)  # as an artefact writes it
    return found
