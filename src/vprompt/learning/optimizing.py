"""Optimizing: what a training moves, each group of parameters with its rate and its decay."""

from typing import Any

import torch
from torch import nn

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
    if config.opt == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups)
