"""Meter: the scores and losses of an epoch, added up batch by batch on the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vprompt.adapters._placement import scores
from vprompt.adapters._placement.rules import Rules
from vprompt.core.types import PromptTokens


class Meter:
    """Means over the scored batches of one epoch; nothing leaves the device until asked."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.weight = 0.0
        self.sums: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.images = 0

    def add(
        self,
        tokens: PromptTokens,
        gradient: PromptTokens,
        slopes: Mapping[str, Tensor],
        others: Sequence[Tensor],
        images: int,
    ) -> None:
        """Add the scores of one batch, by its size.

        `slopes` are a probe's, `others` the gradients of all that is not a token. With a clip,
        scores shrink with the batch's gradient and all batches count alike, as published.
        """
        values = {"taylor": scores.taylor(tokens, gradient)}
        if "inserted" in slopes:
            values["gains"] = -slopes["inserted"]
        for name, leaf in (("mask", "gates"), ("taylor_norm", "scales")):
            if leaf in slopes:
                values[name] = slopes[leaf]
        weight = float(images)
        if self.rules.score_clip and self.rules.score in values:
            own, limit = values[self.rules.score], self.rules.score_clip
            factor, weight = scores.clip_factor(own, others, limit), 1.0
            values = {name: value * factor for name, value in values.items()}
        self.weight += weight
        for name, value in values.items():
            part = weight * scores.wide(value.detach())
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def add_loss(self, loss: Tensor, images: int) -> None:
        """Add the mean loss of a batch: by its size, or divided by it once more, as published."""
        coded = self.rules.reward_loss == "coded"
        self.losses.append(loss.detach() / images if coded else loss.detach() * images)
        self.images += images

    def means(self) -> dict[str, Tensor]:
        """Return the mean scores `[count]` and gains `[candidates, depth]`."""
        return {name: value / self.weight for name, value in self.sums.items()}

    def loss(self) -> float:
        """Return the epoch's loss, in the units that the rules ask for."""
        total = float(torch.stack(self.losses).sum())
        return total if self.rules.reward_loss == "coded" else total / self.images
