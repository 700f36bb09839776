"""Cost: how long a run will take, told before it starts."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vprompt.core.forecast import Estimate, Part
from vprompt.core.precision import autocast
from vprompt.data.task import Examples
from vprompt.learning import classifier
from vprompt.learning.adapter import Adapter, FeatureAdapter
from vprompt.learning.halving import trainings
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone
from vprompt.pooling.mix import PUBLISHED, Plan
from vprompt.prompts.prompt import Prompt

FORWARD_SHARE = 1 / 3  # of a step: a backward pass costs about two forward passes
SCALES = 5  # looks along a sum of moves: its start, and four scales
_MOMENT, _STEPS = 0.5, 8  # seconds for timing steps, and how many are enough
HEADS, SCALED_HEADS = 2, 14  # closed-form heads of a training, and of every scale of a sum
_FITS = 12  # eigendecompositions of one head: two families, five folds and the whole
_SMALL = 160  # rows of the eigendecomposition that is timed
_TRIAL = 16  # images: enough to keep two cores busy, few enough to cost a fraction of a second
_LOOK = 32  # images of a pass without gradients, whose batches are larger
_DECODING = 0.01  # seconds for an image of which nothing is known: a photograph of a megapixel


@dataclass(frozen=True)
class Speed:
    """Images a second of a training step, and of a forward pass alone."""

    step: float
    forward: float


def speed_of(adapter: Adapter, train: Examples, config: TrainConfig) -> Speed:
    """Time small steps of both kinds."""
    step = images_per_second(adapter, train, config)
    return Speed(step, forward_per_second(adapter, train, config))


def images_per_second(adapter: Adapter, train: Examples, config: TrainConfig) -> float:
    """Time small forward-backward steps, as many as fit in a moment.

    Their mean, and not the fastest, is what training takes: other work on the machine slows both.
    """

    def step(images: Tensor) -> None:
        with autocast(config.precision, adapter.backbone.device):
            features = adapter.features(images, generator=torch.Generator())
        total = features.float().sum()
        if total.requires_grad:
            total.backward()
        total.item()  # waits for an accelerator

    found = _timed(adapter, train, step)
    for parameter in adapter.parameters():
        parameter.grad = None
    return found


def forward_per_second(adapter: Adapter, train: Examples, config: TrainConfig) -> float:
    """Time small passes without gradients, as features are computed."""

    def step(images: Tensor) -> None:
        with torch.no_grad(), autocast(config.precision, adapter.backbone.device):
            adapter.features(images).float().sum().item()

    return _timed(adapter, train, step, _LOOK)


def _timed(
    adapter: Adapter, train: Examples, step: Callable[[Tensor], None], images: int = _TRIAL
) -> float:
    pixels, _ = next(train.batches(min(images, len(train))))
    times: list[float] = []
    while len(times) < 2 or (sum(times) < _MOMENT and len(times) < _STEPS):
        began = time.perf_counter()
        step(adapter.backbone.normalise(pixels.to(adapter.backbone.device)))
        times.append(time.perf_counter() - began)
    return len(pixels) / statistics.mean(times[1:])  # the first step also warms up


def head_seconds(adapter: Adapter, images: int) -> float:
    """Return how long a closed-form head takes, from one small eigendecomposition.

    Its cost grows with the cube of the images or of the width, whichever is less.
    """
    matrix = torch.rand(_SMALL, _SMALL, dtype=torch.float64)
    began = time.perf_counter()
    torch.linalg.eigh(matrix @ matrix.T)
    once = time.perf_counter() - began
    size = min(images, adapter.feature_dim)
    return _FITS * once * max((size / _SMALL) ** 3, (size / _SMALL) ** 2 / 4)


def judged(config: TrainConfig, epochs: int | None = None) -> int:
    """Return how often a training, or trainings of `epochs` in all, look at validation images."""
    few = config.keep == "last" and not config.patience
    looks = min(config.epochs, 1) + 1 if few else config.epochs + 1
    return looks if epochs is None else math.ceil(epochs * looks / max(config.epochs, 1))


def training_estimate(
    adapter: Adapter,
    train: Examples,
    config: TrainConfig,
    *,
    points: int = 1,
    halving: bool = False,
    val: int = 0,
    test: int = 0,
    decoding: float = 0.0,
) -> Estimate:
    """Return how long training will take at all points of a grid.

    `val` and `test` are numbers of images; those of the test split are looked at twice, with the
    frozen features and with the result, and need `decoding` seconds to be read. Those to train on
    are looked at once more for the head to start from, and once without a prompt.
    """
    whole = trainings(points, config.epochs) if halving else points
    times = f"{whole:.3g} x " if points > 1 else ""
    what = f"{times}{config.epochs} epochs x {len(train)} images"
    steps = math.ceil(whole * config.epochs) * len(train)
    heads = (points + 1) * head_seconds(adapter, len(train))
    units = points * config.epochs * math.ceil(len(train) / config.batch_size)
    if isinstance(adapter, FeatureAdapter):
        # A step has no backward pass, and images that are not cut are seen once.
        speed = forward_per_second(adapter, train, config)
        once = config.augment == "none"
        seen = (0 if once else steps) + len(train) + val
        tune = Part(0.0 if once else steps / speed, units)
        parts = {"tune": tune, "test": Part(test / speed, 2 * test)}
        if once:
            what = f"one pass over {len(train)} images, then the head alone"
        other = (seen - (0 if once else steps)) / speed + heads + decoding
        return Estimate(what, parts, other, _facts(speed, val + test))
    found = speed_of(adapter, train, config)
    judging = math.ceil(whole * judged(config)) * val
    parts = {
        "tune": Part(steps / found.step + judging / found.forward, units),
        "test": Part(2 * test / found.forward, 2 * test),
    }
    other = (points + 1) * len(train) / found.forward + heads + decoding
    return Estimate(what, parts, other, _facts(found.step, judging + 2 * test))


def searching_estimate(
    adapter: Adapter,
    train: Examples,
    config: TrainConfig,
    *,
    alpha: int,
    then: TrainConfig,
    again: int,
    val: int = 0,
    test: int = 0,
) -> Estimate:
    """Return how long a search will take, and the training of what it finds on `again` images.

    At every step of the prompts `alpha` images move the lengths.
    """
    found = speed_of(adapter, train, config)
    steps = math.ceil(len(train) / config.batch_size)
    both = config.epochs * (len(train) + steps * alpha)
    judging = judged(config) * val
    second = then.epochs * again / found.step + judged(then) * val / found.forward
    other = second + (2 * again + 2 * test + len(train)) / found.forward
    other += 3 * head_seconds(adapter, again)
    what = (
        f"{config.epochs} epochs x {len(train)} images to search, then {then.epochs} epochs x "
        f"{again} images"
    )
    searched = Part(both / found.step + judging / found.forward, config.epochs * steps)
    looks = judging + judged(then) * val + 2 * test
    return Estimate(what, {"tune": searched}, other, _facts(found.step, looks))


def combining_estimate(
    adapter: Adapter,
    train: Examples,
    config: TrainConfig,
    *,
    sources: int,
    plan: Plan,
    val: int = 0,
    test: int = 0,
    decoding: float = 0.0,
    kept: int = 0,
    again: bool = False,
) -> Estimate:
    """Return how long evidence and tuning will take.

    `kept` passes of the sources are in the cache; `again` says that an equal run has left there
    everything but the training. `val` and `test` are numbers of images. Those of the test split
    are looked at without a prompt, under the start, the sum or each part of an ensemble, the best
    source if the sources are looked at, and the result if it was tuned. A sum of weights one has
    the average in place of the start.
    """
    found = speed_of(adapter, train, config)
    epochs, looks, width, heads = plan.epochs(config.epochs, sources), 0, 1, HEADS
    if plan.move_scale != PUBLISHED:
        looks = SCALES + (2 if plan.form in ("sum", "side_by_side") else plan.members)
        heads += SCALES * SCALED_HEADS
        width = plan.members if plan.form in ("ensemble", "auto") else 1
    seen = sources + 1 if plan.looks else 1
    fits = (seen + heads) * head_seconds(adapter, len(train))
    seen -= min(kept, seen)
    if again:
        seen = looks = test = 0
        decoding = 0.0
    passes = seen + looks
    judging = (width + (width > 1)) * judged(config, epochs) * val
    tests = (2 + plan.looks + width + (width if epochs else 0)) * test
    images = len(train)
    gathering = seen * images / (found.forward if plan.gradient_head is None else found.step)
    units = epochs * math.ceil(images / config.batch_size)
    tuning = (width + (width > 1)) * epochs * images / found.step + judging / found.forward
    parts = {
        "evidence": Part(gathering, seen * images),
        "climb": Part(plan.climb * images / found.step, plan.climb),
        "tune": Part(tuning if units else 0.0, units),
        "test": Part(tests / found.forward, tests),
    }
    other = looks * images / found.forward + fits + decoding + (0.0 if units else tuning)
    what = f"{passes} evidence passes and {epochs} epochs x {images} images"
    if again:
        what = f"{epochs} epochs x {images} images; an earlier run left the rest"
    return Estimate(what, parts, other, _facts(found.step, judging + tests))


def scoring_estimate(
    adapter: Adapter,
    train: Examples,
    config: TrainConfig,
    *,
    sources: int,
    epochs: int = 0,
    scores: float = 0.0,
    kept: int = 0,
) -> Estimate:
    """Return how long it takes to look through all sources, and `scores` seconds to score them.

    `kept` passes are in the cache. `epochs` are of a prompt on the target that a metric compares
    with.
    """
    found = speed_of(adapter, train, config)
    images, seen = len(train), sources + 1 - min(kept, sources + 1)
    parts = {"evidence": Part(seen * images / found.forward, seen * images)}
    other = epochs * images / found.step + scores
    facts = f" at {found.forward:.0f} images/s, then the scores"
    return Estimate(f"{seen} passes x {images} images", parts, other, facts)


def measuring_estimate(
    backbone: Backbone,
    adapted: Prompt | Adapter | None,
    images: int,
    candidates: int,
    *,
    again: bool = False,
) -> Estimate:
    """Return how long it takes to read test images, and to look at them with every candidate.

    `again` says that an equal measurement has left all of that in the cache.
    """
    if again:
        return Estimate(f"an earlier run has looked at the {images:,} images")
    height, width = backbone.data_config.input_size[1:]
    pixels = np.full((_TRIAL, height, width, 3), 128, dtype=np.uint8)
    grey = Examples(pixels, torch.zeros(_TRIAL, dtype=torch.int64), "trial")
    times = []
    for _ in range(2):  # the first one also warms up
        began = time.perf_counter()
        classifier.features_of(backbone, adapted, grey, use_cache=False)
        times.append(time.perf_counter() - began)
    speed, looks = _TRIAL / times[-1], images * candidates
    parts = {
        "decode images": Part(images * _DECODING, images),
        "test": Part(looks / speed, looks),
    }
    return Estimate(f"{looks:,} looks at images", parts, facts=f" at {speed:.0f} images/s")


def _facts(speed: float, judged_images: int) -> str:
    looks = f", {judged_images:,} looks at images to validate and test" if judged_images else ""
    return f" at {speed:.0f} images/s{looks}"
