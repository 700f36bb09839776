"""MaPLe: deep text prompts in word slots, each coupled to an image prompt by a linear layer.

Reference: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117.
"""

from typing import Any

import torch
from torch import nn

from vprompt.adapters._coop_family import PUBLISHED
from vprompt.adapters._slots import first_blocks, text_start
from vprompt.data.sentences import GENERIC
from vprompt.learning.adapter import Adapter
from vprompt.learning.text_adapter import Pair, TowersAdapter, two_towers
from vprompt.models.backbone import Backbone
from vprompt.models.two_tower import TwoTower
from vprompt.prompts.prompt import Prompt


class Maple(TowersAdapter):
    """Text tokens of `depth` blocks, and one linear layer per block that makes image tokens."""

    def __init__(self, backbone: TwoTower, text: Prompt, depth: int, seed: int) -> None:
        super().__init__(backbone, None, text, GENERIC, embedded=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(backbone.text.dim, backbone.dim) for _ in range(depth)]
        self.couplings = nn.ModuleList(layers).to(backbone.device)

    def prompts(self) -> Pair:
        """Return the text prompt, and the image prompt that its coupling makes of it."""
        _, text = super().prompts()
        assert text is not None
        counts = [int((text.blocks == block).sum()) for block in range(len(self.couplings))]
        parts = text.tokens.split(counts)
        rows = [layer(part) for layer, part in zip(self.couplings, parts, strict=True)]
        return self.entered(Prompt(torch.cat(rows), text.blocks, persist=True)), text


def build(
    backbone: Backbone, *, num_virtual_tokens: int = 2, depth: int = 9, prompt_init_seed: int = 0
) -> Adapter:
    """Start as IVLP in the text tower, at the first `depth` blocks of both towers.

    `depth` is cut to the shallower tower. The couplings start as torch starts linear layers.
    """
    clip = two_towers(backbone, "maple")
    depth = min(depth, clip.depth, clip.text.depth)
    blocks = first_blocks(num_virtual_tokens, depth, clip.text.depth, "text")
    rows = text_start(clip, num_virtual_tokens, len(blocks), prompt_init_seed)
    return Maple(clip, Prompt(rows, blocks, persist=True), depth, prompt_init_seed)


def training(**settings: object) -> dict[str, Any]:
    """Return the published settings."""
    del settings
    return {**PUBLISHED, "lr": 0.0035, "batch_size": 4, "epochs": 5}
