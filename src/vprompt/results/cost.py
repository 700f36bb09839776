"""Cost: how long a run will take, told before it starts."""

import math
import statistics
import time

import torch

from vprompt.core import clock
from vprompt.core.precision import autocast
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter, FeatureAdapter
from vprompt.learning.halving import trainings
from vprompt.learning.train_config import TrainConfig
from vprompt.pooling.mix import PUBLISHED, Plan

FORWARD_SHARE = 1 / 3  # of a step: a backward pass costs about two forward passes
SCALES = 5  # looks along a sum of moves: its start, and four scales
_MOMENT, _STEPS = 0.5, 8  # seconds for timing steps, and how many are enough
HEADS, SCALED_HEADS = 2, 14  # closed-form heads of a training, and of every scale of a sum
_FITS = 12  # eigendecompositions of one head: two families, five folds and the whole
_SMALL = 160  # rows of the eigendecomposition that is timed
_TRIAL = 16  # images: enough to keep two cores busy, few enough to cost a fraction of a second


def images_per_second(adapter: Adapter, train: Examples, config: TrainConfig) -> float:
    """Time small forward-backward steps, as many as fit in a moment.

    Their mean, and not the fastest, is what training takes: other work on the machine slows both.
    """
    device = adapter.backbone.device
    pixels, _ = next(train.batches(min(_TRIAL, len(train))))
    times: list[float] = []
    while len(times) < 2 or (sum(times) < _MOMENT and len(times) < _STEPS):
        began = time.perf_counter()
        with autocast(config.precision, device):
            images = adapter.backbone.normalise(pixels.to(device))
            features = adapter.features(images, generator=torch.Generator())
        total = features.float().sum()
        if total.requires_grad:
            total.backward()
        total.item()  # waits for an accelerator
        times.append(time.perf_counter() - began)
    for parameter in adapter.parameters():
        parameter.grad = None
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
) -> str:
    """Return a sentence on how long training will take at all points of a grid.

    `val` and `test` are numbers of images; those of the test split are looked at twice, with the
    frozen features and with the result, and need `decoding` seconds to be read. Those to train on
    are looked at once more for the head to start from, and once without a prompt.
    """
    frozen = isinstance(adapter, FeatureAdapter)
    if frozen and config.augment == "none":
        return f"one pass over {len(train)} images, then the head alone"
    speed = images_per_second(adapter, train, config)
    whole = trainings(points, config.epochs) if halving else points
    times = f"{whole:.3g} x " if points > 1 else ""
    decoding += (points + 1) * head_seconds(adapter, len(train))
    what = f"{times}{config.epochs} epochs x {len(train)} images"
    forward = math.ceil(whole * judged(config)) * val + 2 * test
    steps = math.ceil(whole * config.epochs) * len(train)
    if frozen:  # a step has no backward pass, and images that are not cut are seen once
        return _sentence(steps, val + test, what, speed, val + test, decoding, share=1.0)
    first = (points + 1) * len(train)
    return _sentence(steps, forward + first, what, speed, forward, decoding)


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
) -> str:
    """Return a sentence on how long evidence and tuning will take, if nothing is cached.

    `val` and `test` are numbers of images; those of the test split are looked at five times:
    without a prompt, under the best source, the average, the sum, and the result. An ensemble
    looks once for each of its members, and once without a prompt.
    """
    speed = images_per_second(adapter, train, config)
    epochs, looks, width, heads = plan.epochs(config.epochs, sources), 0, 1, HEADS
    if plan.move_scale != PUBLISHED:
        looks = SCALES + (2 if plan.form in ("sum", "side_by_side") else plan.members)
        heads += SCALES * SCALED_HEADS
        width = plan.members + 1 if plan.form in ("ensemble", "auto") else 1
    seen = sources + 1 if plan.looks else 1
    decoding += (seen + heads) * head_seconds(adapter, len(train))
    passes = seen + looks
    what = f"{passes} evidence passes and {epochs} epochs x {len(train)} images"
    judged_images = width * judged(config, epochs) * val + (3 + 2 * width) * test
    steps, forward = width * epochs + plan.climb, judged_images + looks * len(train)
    if plan.gradient_head is None:
        forward += seen * len(train)
    else:
        steps += seen
    return _sentence(steps * len(train), forward, what, speed, judged_images, decoding)


def _sentence(
    steps: int,
    forward: int,
    what: str,
    speed: float,
    judged_images: int,
    other: float = 0.0,
    share: float = FORWARD_SHARE,
) -> str:
    """`share` is what a forward pass alone costs of a step, `other` the seconds without images."""
    seconds, spent = (steps + share * forward) / speed + other, clock.since_begin()
    looks = f", {judged_images:,} looks at images to validate and test" if judged_images else ""
    whole = f" more, {clock.words(seconds + spent)} in all" if spent else ""
    return f"about {clock.words(seconds)}{whole}: {what} at {speed:.0f} images/s{looks}"
