"""Moves: where a relocated token starts from, and what its optimiser remembers of the old place."""

import torch
from torch import Tensor, nn

from vprompt.adapters._start import blank_patches
from vprompt.core.randomness import stream
from vprompt.core.types import Blocks
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import vpt_uniform


class Fresh:
    """New vectors for tokens that move, the same for one seed and epoch whenever they are asked."""

    def __init__(self, backbone: Backbone, *, blank: bool) -> None:
        self.depth, self.dim, self.patch_size = backbone.depth, backbone.dim, backbone.patch_size
        self.blank = torch.stack(blank_patches(backbone)) if blank else None

    def vectors(self, count: int, seed: int, epoch: int, *, explore: bool) -> Tensor:
        """Return `[count, depth, dim]`, vectors for every block.

        They are as the prompt's own start: patches of an empty image as they are at each block, at
        a random position, or uniform draws. With `explore` all but the first are uniform draws.
        """
        generator = stream(seed, f"fresh tokens, epoch {epoch}")
        places = torch.zeros(count, dtype=torch.long)
        drawn = vpt_uniform(places, self.dim, self.patch_size, generator=generator)
        drawn = drawn[:, None].expand(-1, self.depth, -1)
        if self.blank is None:
            return drawn.clone()
        positions = torch.randint(self.blank.shape[1], (count,), generator=generator)
        found = self.blank[:, positions].transpose(0, 1)
        return torch.cat([found[:1], drawn[1:]]) if explore else found


@torch.no_grad()
def forget_row(
    optimizer: torch.optim.Optimizer, tokens: nn.Parameter, row: int, blocks: Blocks
) -> None:
    """Reset what the optimiser holds of one token, as if it had just been made.

    Momentum becomes 0. AdamW counts steps per tensor, so a row of zeros would take a first step of
    (1 - beta1) / sqrt(1 - beta2), about 3.2 times the rate: its second moment becomes the mean of
    the other tokens in its (new) block instead, or of all others where it is alone.
    """
    state = optimizer.state.get(tokens, {})
    for name in ("momentum_buffer", "exp_avg"):
        if state.get(name) is not None:
            state[name][row] = 0
    second = state.get("exp_avg_sq")
    if second is not None:
        others = blocks == blocks[row]
        others[row] = False
        if not others.any():
            others = torch.ones_like(others)
            others[row] = len(others) == 1
        second[row] = second[others].mean(0)
