"""Schedule: the learning rate of every step of the training loop."""

import math

from vprompt.learning.train_config import TrainConfig


def rate(config: TrainConfig, peak: float, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step, counted from 0, for parameters of a peak rate."""
    if config.sched == "constant":
        return peak
    if config.sched == "cosine_by_epoch":
        return rate_of_epoch(config, peak, step // steps_per_epoch)
    total = steps_per_epoch * config.epochs
    return peak * learning_rate_factor(step, total, config.warmup, config.min_lr)


def rate_of_epoch(config: TrainConfig, peak: float, epoch: int) -> float:
    """Return the rate of a whole epoch, counted from 0, as the code of CoOp's family has it.

    With `first_epoch_lr` the first epoch has that rate, whatever the peak, and the cosine begins
    with the second: it is cut off one epoch before its end.
    """
    late = config.first_epoch_lr is not None
    if config.first_epoch_lr is not None and epoch == 0:
        return config.first_epoch_lr
    return peak * _half_cosine((epoch - late) / config.epochs, config.min_lr)


def learning_rate_factor(step: int, total: int, warmup: float, floor: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up from above 0, then half-cosine.

    Step 0 already trains: the papers' code starts its first epoch at rate 0.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return _half_cosine((step - rising) / max(total - rising, 1), floor)


def _half_cosine(share: float, floor: float) -> float:
    return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2
