"""Optimizing: what a training moves, each group of parameters with its rate and its decay."""

from typing import Any

import torch
from torch import Tensor, nn

from vprompt.core.errors import VPromptError
from vprompt.learning.adapter import Adapter
from vprompt.learning.classifier import Classifier
from vprompt.learning.train_config import TrainConfig


def optimizer_of(classifier: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
    """Build one optimiser that honours weight decay everywhere, on the head's bias if asked."""
    groups: list[dict[str, Any]] = []
    of_bias = config.weight_decay if config.decay_bias else 0.0
    for parameter, decay in ((classifier.weight, config.weight_decay), (classifier.bias, of_bias)):
        if parameter is not None:
            groups.append(
                {"params": [parameter], "peak_lr": config.rate_of_head, "weight_decay": decay}
            )
    for parameters, factor in classifier.adapter.groups():
        if parameters:
            rate = config.lr * factor
            groups.append(
                {"params": parameters, "peak_lr": rate, "weight_decay": config.weight_decay}
            )
    for group in groups:
        group["lr"] = group["peak_lr"]
    if not groups:  # nothing is trained, but torch wants something to optimise
        groups = [{"params": [nn.Parameter(torch.zeros(()))], "peak_lr": 0.0, "lr": 0.0}]
    made: torch.optim.Optimizer = (
        torch.optim.SGD(groups, momentum=0.9) if config.opt == "sgd" else torch.optim.AdamW(groups)
    )
    if config.lr_unit == "start":
        _scale_steps(made, classifier.adapter)
    return made


def _scale_steps(optimizer: torch.optim.Optimizer, adapter: Adapter) -> None:
    """Multiply every step, row by row, by the sizes that the adapter's tokens had at the start.

    The steps of both optimisers are proportional to the rate, decay included, so this is a rate
    for every row. Gradients cannot carry it: AdamW divides their size out again.
    """
    if not adapter.step_sizes():
        raise VPromptError(
            f"{type(adapter).__name__} has no tokens whose size at the start could be the unit of "
            "its rate. Use --lr-unit none, and a rate that is a plain number."
        )
    before: dict[nn.Parameter, Tensor] = {}

    def remember(*_: Any) -> None:
        before.update((p, p.detach().clone()) for p in adapter.step_sizes())

    @torch.no_grad()
    def scale(*_: Any) -> None:
        for parameter, sizes in adapter.step_sizes().items():
            start = before[parameter]
            parameter.copy_(start + sizes * (parameter - start))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(scale)
