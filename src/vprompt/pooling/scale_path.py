"""Scale path: how far to go along a pool's moves, judged on the target's few images alone.

The start plus `scale` times a mean of moves is looked at for several scales, no prompt at all among
them. Each gets a closed-form head, judged on images that it has not seen (docs/moves.md).

Reference: Tsamardinos et al., "Bootstrapping the out-of-sample predictions for efficient and
accurate cross-validation", Machine Learning 2018, for the gain of what was chosen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import centred_cosine
from vprompt.core.randomness import stream
from vprompt.core.types import Features, Labels
from vprompt.models import heldout
from vprompt.models.heldout import HeldOut
from vprompt.prompts.prompt import Prompt

LADDER = (1.0, 2.0, 4.0, 8.0)
LARGEST, LEAST = 12.0, 1 / 16
ALIKE = 0.5  # likeness to the features at the start down to which a scale is taken unjudged
NO_PROMPT, START = "no prompt", "start"
_RESAMPLES = 200

Look = Callable[[Prompt | None], Features]


@dataclass(frozen=True, eq=False)
class Point:
    """One candidate: a scale, or no prompt; what it makes of the images and how that was judged.

    `alike` is the cosine of its centred features with those at the start; unlike an alignment of
    kernels it does not depend on the number of images. `problem` says why it was dropped.
    """

    name: str
    scale: float
    prompt: Prompt | None
    features: Features
    held: HeldOut | None = None
    alike: float = 1.0
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for the record."""
        held = self.held
        return {
            "name": self.name,
            "scale": self.scale,
            "cv_loss": None if held is None else held.loss,
            "cv_accuracy": None if held is None else held.accuracy,
            "alike": self.alike,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Gain:
    """The cross-validated gain in accuracy over no prompt, as a share, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain values."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True, eq=False)
class ScalePath:
    """All points, in the order of their scales, and which was chosen and why.

    `dealt` are the folds that all were judged by; None where nothing could be held out.
    """

    points: tuple[Point, ...]
    chosen: int
    why: str
    dealt: Tensor | None

    @property
    def choice(self) -> Point:
        """The chosen point."""
        return self.points[self.chosen]

    @property
    def plain(self) -> Point:
        """The point without a prompt."""
        return self.points[0]

    @property
    def start(self) -> Point:
        """The point at scale 0."""
        return self.points[1]


def walk_scales(
    at: Callable[[float], Prompt],
    look: Look,
    labels: Labels,
    num_classes: int,
    *,
    scales: Sequence[float] = LADDER,
    descend: bool = True,
    refine: bool = True,
    seed: int = 0,
) -> ScalePath:
    """Look at no prompt, the start and every scale, judge them and choose one.

    `at(scale)` is the prompt at a scale, `look` returns features of the training images. With
    `descend`, the least scale is halved, down to `LEAST`, until its features are alike those at
    the start: moves that are long need it. With `refine`, the scales between the best of the
    ladder and its neighbours are looked at, too.
    """
    dealt = heldout.deals(labels, seed=seed) if heldout.can_hold_out(labels) else None

    def judged(name: str, scale: float, prompt: Prompt | None, base: Features | None) -> Point:
        features = look(prompt)
        if not bool(torch.isfinite(features).all()):
            return Point(
                name, scale, prompt, features, problem="features are not finite", alike=0.0
            )
        alike = 1.0 if base is None else centred_cosine(base, features)
        held = None
        if dealt is not None:
            held = heldout.judge(features, labels, num_classes, dealt)
        return Point(name, scale, prompt, features, held, alike)

    start = judged(START, 0.0, at(0.0), None)
    if start.problem:
        raise VPromptError(
            "The features at the pool's start are not finite numbers, so nothing can be built on "
            "it. Check the backbone, or try --precision fp32."
        )
    plain = judged(NO_PROMPT, 0.0, None, start.features)
    found = {s: judged(f"x{s:g}", s, at(s), start.features) for s in sorted(set(scales) - {0.0})}
    scale = min(found, default=0.0)
    while descend and scale > LEAST and found[scale].alike < ALIKE:
        scale /= 2
        found[scale] = judged(f"x{scale:g}", scale, at(scale), start.features)
    if refine and dealt is not None and len(found) > 1:
        for scale in _between(found):
            found[scale] = judged(f"x{scale:g}", scale, at(scale), start.features)
    points = (plain, start, *(found[scale] for scale in sorted(found)))
    chosen, why = choose(points)
    return ScalePath(points, chosen, why, dealt)


def choose(points: Sequence[Point]) -> tuple[int, str]:
    """Return the chosen point and why: the anchor, unless another is clearly better.

    The anchor is the largest scale at which the features are still `ALIKE` those at the start. It
    needs no label, and stands unless a point has a held-out loss that is smaller by more than one
    standard error, image by image: then that with the least loss is taken. Taking the least loss
    outright falls for lucky scales, and the smallest scale among equals gives away half of what a
    pool is worth (docs/moves.md).
    """
    anchor = anchor_of(points)
    usable = [row for row, point in enumerate(points) if point.held is not None]
    if not usable:
        return anchor, "nothing can be held out: the scale at which features stay alike"
    losses = torch.stack([_losses(points[row]) for row in usable])
    row = usable[_chosen(losses, usable.index(anchor))]
    if row == anchor:
        return row, "no scale is clearly better than the one at which features stay alike"
    return row, "clearly the least held-out loss"


def anchor_of(points: Sequence[Point]) -> int:
    """Return the largest scale with features still alike those at the start, or else the least."""
    sound = [row for row, p in enumerate(points) if p.problem is None and p.scale > 0]
    alike = [row for row in sound if points[row].alike >= ALIKE]
    if alike:
        return max(alike, key=lambda row: points[row].scale)
    return sound[0] if sound else 1


def _chosen(losses: Tensor, anchor: int) -> int:
    """Return the row of the least mean of `losses [points, images]`, or the anchor's."""
    best = int(losses.mean(1).argmin())
    gain = losses[anchor] - losses[best]
    error = float(gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else math.inf
    return best if float(gain.mean()) > error else anchor


def gain_of_choice(path: ScalePath, *, seed: int = 0) -> Gain | None:
    """Return what the chosen point gains over no prompt, free of the luck of having been chosen.

    The choice is made again on resampled images, and what it gains is read on those that were left
    out. None where nothing could be held out.
    """
    usable = [row for row, point in enumerate(path.points) if point.held is not None]
    if path.plain.held is None or len(usable) < 2:
        return None
    losses = torch.stack([_losses(path.points[row]) for row in usable])
    right = torch.stack([_right(path.points[row]) for row in usable])
    anchor = usable.index(anchor_of(path.points))
    images, generator, gains = losses.shape[1], stream(seed, "resampled gain"), []
    for _ in range(_RESAMPLES):
        drawn = torch.randint(0, images, (images,), generator=generator)
        out = torch.ones(images, dtype=torch.bool)
        out[drawn] = False
        if out.any():
            row = _chosen(losses[:, drawn], anchor)
            gains.append(float((right[row, out] - right[0, out]).mean()))
    own = usable.index(path.chosen)
    if own == 0:  # no prompt was taken: what the best of the others would have gained
        own = 1 + int(losses[1:].mean(1).argmin())
        return _around(float((right[own] - right[0]).mean()), right[own] - right[0])
    return _around(sum(gains) / len(gains), right[own] - right[0])


def gain_over(plain: HeldOut | None, other: HeldOut | None) -> Gain | None:
    """Return the gain in accuracy of one candidate that was not chosen among others."""
    if plain is None or other is None:
        return None
    apart = other.correct - plain.correct
    return _around(float(apart.mean()), apart)


def _around(mean: float, apart: Tensor) -> Gain:
    """Return the mean with a normal interval from paired differences of images."""
    error = float(apart.std() / math.sqrt(len(apart))) if len(apart) > 1 else 1.0
    return Gain(mean, mean - 1.96 * error, mean + 1.96 * error)


def verdict(gain: Gain | None, held_out: Sequence[int], *, unused: bool = False) -> str:
    """Return what a person acts on: whether this pool helps this task.

    `held_out` is how many images of each class were held out in turn. The gain is that of images
    whose classes are as frequent, and the sentence says how frequent that is.
    """
    if gain is None:
        return (
            "whether this pool helps cannot be judged: no class has a second image to hold out. "
            "The scale is the one at which features stay alike those at the start"
        )
    each = f"{held_out[0]} of each class" if len({*held_out}) == 1 else "classes as frequent there"
    seen = f"cross-validated on {sum(held_out)} images, {each}"
    size = f"{100 * gain.mean:+.1f} points, {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    if unused or gain.high <= 0:
        return f"this pool does not help your task ({size}, {seen}): learn without it"
    if gain.low > 0:
        return f"this pool helps: {size} over no prompt, {seen}"
    if gain.mean > 0:
        return f"this pool may help: {size} over no prompt, {seen}; more images would tell"
    return f"this pool hardly helps: {size} over no prompt, {seen}; it may do no better than none"


def remarks(path: ScalePath) -> list[str]:
    """Return what a person should know about the path, a sentence each."""
    dropped = [f"{p.name} ({p.problem})" for p in path.points if p.problem]
    said = [f"left out of the scales: {', '.join(dropped)}"] if dropped else []
    largest = max(point.scale for point in path.points)
    if path.choice.scale and path.choice.scale == largest:
        said.append(
            f"the largest scale, x{largest:g}, was taken: more may be better still. Try "
            f"--move-scale {2 * largest:g}"
        )
    return said


def _between(found: dict[float, Point]) -> list[float]:
    """Return the scales halfway, by ratio, from the best of the ladder to its neighbours."""
    sound = [scale for scale, point in found.items() if point.held is not None]
    if not sound:
        return []
    best = min(sound, key=lambda scale: found[scale].held.loss)  # type: ignore[union-attr]
    order = sorted(found)
    place = order.index(best)
    low = best / 2 if place == 0 else math.sqrt(best * order[place - 1])
    high = LARGEST if place + 1 == len(order) else math.sqrt(best * order[place + 1])
    return [round(scale, 2) for scale in (low, high) if scale not in found]


def _losses(point: Point) -> Tensor:
    assert point.held is not None
    return point.held.losses


def _right(point: Point) -> Tensor:
    assert point.held is not None
    return point.held.correct
