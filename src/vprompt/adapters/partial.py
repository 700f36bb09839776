"""Partial: the last blocks and all that comes after them are trained, the rest stays frozen.

Reference: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014,
arXiv 1411.1792; as PARTIAL-k in Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119.
"""

from typing import Any

import torch

from vprompt.core.errors import VPromptError
from vprompt.learning.adapter import Adapter
from vprompt.learning.twin import TwinAdapter, twin_of
from vprompt.models.backbone import Backbone


def build(backbone: Backbone, *, num_blocks: int = 1) -> Adapter:
    """Train the last `num_blocks` blocks, the final norm and, where there is one, the pooling."""
    if not 1 <= num_blocks <= backbone.depth:
        raise VPromptError(
            f"partial trains between 1 and all {backbone.depth} blocks of {backbone.name!r}, but "
            f"got num_blocks={num_blocks}."
        )
    return PartialAdapter(backbone, num_blocks)


class PartialAdapter(TwinAdapter):
    """A twin whose last blocks train; what enters them is the same in every epoch."""

    def __init__(self, backbone: Backbone, num_blocks: int) -> None:
        super().__init__(backbone, last_parameters(backbone, num_blocks))
        self.num_blocks = num_blocks

    @property
    def constant_blocks(self) -> int:
        """The blocks before those that train."""
        return self.backbone.depth - self.num_blocks


def training(**settings: object) -> dict[str, Any]:
    """Return a rate at which pre-trained weights survive."""
    del settings
    return {"lr": 1e-4}


def last_parameters(backbone: Backbone, num_blocks: int) -> list[str]:
    """Return the names of what the last blocks and the pooling use.

    They are found by a gradient and not by name, so any backbone will do.
    """
    twin = twin_of(backbone, [name for name, _ in backbone.named_parameters()])
    with torch.no_grad():
        images = torch.zeros(1, *backbone.data_config.input_size, device=backbone.device)
        tokens = twin.embed(images)
    for index in range(backbone.depth - num_blocks, backbone.depth):
        tokens = twin.block(index, tokens)
    names, parameters = zip(*twin.named_parameters(), strict=True)
    found = torch.autograd.grad(twin.pool(tokens).sum(), parameters, allow_unused=True)
    return [name for name, slope in zip(names, found, strict=True) if slope is not None]
