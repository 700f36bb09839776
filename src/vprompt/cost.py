"""Cost: how long a run will take, told before it starts."""

import time

import torch

from vprompt.adapter import Adapter, FeatureAdapter
from vprompt.mix import Plan
from vprompt.precision import autocast
from vprompt.task import Examples
from vprompt.train_config import TrainConfig

_TRIAL = 16  # images: enough to keep two cores busy, few enough to cost a fraction of a second


def images_per_second(adapter: Adapter, train: Examples, config: TrainConfig) -> float:
    """Time one small forward-backward step."""
    device = adapter.backbone.device
    pixels, _ = next(train.batches(min(_TRIAL, len(train))))
    spent = float("inf")
    for _ in range(2):  # the first step also warms up
        began = time.perf_counter()
        with autocast(config.precision, device):
            images = adapter.backbone.normalise(pixels.to(device))
            features = adapter.features(images, generator=torch.Generator())
        total = features.float().sum()
        total.backward()
        total.item()  # waits for an accelerator
        spent = min(spent, time.perf_counter() - began)
    for parameter in adapter.parameters():
        parameter.grad = None
    return len(pixels) / spent


def training_estimate(
    adapter: Adapter, train: Examples, config: TrainConfig, *, points: int = 1
) -> str:
    """Return a sentence on how long training will take at all points of a grid."""
    if isinstance(adapter, FeatureAdapter):
        return f"one pass over {len(train)} images, then the head alone"
    speed = images_per_second(adapter, train, config)
    times = f"{points} x " if points > 1 else ""
    what = f"{times}{config.epochs} epochs x {len(train)} images"
    return _sentence(points * config.epochs * len(train), what, speed)


def combining_estimate(
    adapter: Adapter, train: Examples, config: TrainConfig, *, sources: int, plan: Plan
) -> str:
    """Return a sentence on how long evidence and tuning will take, if nothing is cached."""
    speed = images_per_second(adapter, train, config)
    epochs = plan.epochs(config.epochs, sources)
    passes = sources + 1 + epochs
    what = f"{sources + 1} evidence passes and {epochs} epochs x {len(train)} images"
    return _sentence(passes * len(train), what, speed)


def _sentence(images: int, what: str, speed: float) -> str:
    return f"about {words(images / speed)}: {what} at {speed:.0f} images/s, then the test split"


def words(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
