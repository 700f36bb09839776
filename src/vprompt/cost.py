"""Cost: how long a run will take, told before it starts."""

import time

import torch

from vprompt.adapter import Adapter, NoAdapter
from vprompt.precision import autocast
from vprompt.task import Examples
from vprompt.train_config import TrainConfig

_TRIAL = 16  # images: enough to keep two cores busy, few enough to cost a fraction of a second


def estimate(adapter: Adapter, train: Examples, config: TrainConfig, *, grid: int = 1) -> str:
    """Time one small step and return a sentence on the whole run."""
    if isinstance(adapter, NoAdapter):
        return f"one pass over {len(train)} images, then the head alone"
    device = adapter.backbone.device
    pixels, _ = next(train.batches(min(_TRIAL, len(train))))
    spent = float("inf")
    for _ in range(2):  # the first step also warms up
        began = time.perf_counter()
        with autocast(config.precision, device):
            features = adapter.features(adapter.backbone.normalise(pixels.to(device)))
        features.float().sum().backward()
        spent = min(spent, time.perf_counter() - began)
    for parameter in adapter.parameters():
        parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    speed = len(pixels) / spent
    seconds = grid * config.epochs * len(train) / speed
    times = f"{grid} x " if grid > 1 else ""
    return (
        f"about {_words(seconds)}: {times}{config.epochs} epochs x {len(train)} images at "
        f"{speed:.0f} images/s"
    )


def _words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
