"""Adapter: a bottleneck after the feed-forward of every block, added to it before the residual.

Reference: Pfeiffer et al., "AdapterFusion: Non-Destructive Task Composition for Transfer
Learning", EACL 2021, arXiv 2005.00247.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.registry import suggest
from vprompt.learning.adapter import Adapter
from vprompt.learning.twin import TwinAdapter
from vprompt.models.backbone import Backbone

INITS = ("xavier", "vpt_repo")


def build(
    backbone: Backbone, *, reduction: int = 8, init: str = "xavier", init_seed: int = 0
) -> Adapter:
    """Add `y + up(gelu(down(y)))` with a bottleneck of the tokens' width by `reduction`.

    `init=xavier` draws `down` and sets `up` to zero: the start changes no feature, and learns.
    `init=vpt_repo` is the public code of VPT, where everything is zero. Then the bottleneck's
    output is zero whatever happens to either weight alone, no gradient reaches them, and only the
    bias of `up` ever learns.
    """
    if not 1 <= reduction <= backbone.dim:
        raise VPromptError(
            f"adapter reduces the width by 1 to {backbone.dim}, but got reduction={reduction}."
        )
    if init not in INITS:
        raise VPromptError(f"adapter has no init {init!r}.{suggest(init, INITS)}")
    return BottleneckAdapter(backbone, backbone.dim // reduction, init, init_seed)


def training(**settings: object) -> dict[str, Any]:
    """Return the rate that the bottlenecks want."""
    del settings
    return {"lr": 1e-3}


class Bottleneck(nn.Module):
    """`up(gelu(down(y)))`, down from `dim` to `width` and up again, both with a bias."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added, `[batch, sequence, dim]`."""
        return self.up(functional.gelu(self.down(tokens)))


class BottleneckAdapter(TwinAdapter):
    """A twin with a bottleneck in every block; the twin itself stays as it is."""

    def __init__(self, backbone: Backbone, width: int, init: str, seed: int) -> None:
        super().__init__(backbone)
        generator = stream(seed, "adapter")
        bottlenecks = []
        for index in range(backbone.depth):
            bottleneck = Bottleneck(backbone.dim, width)
            if init == "xavier":
                nn.init.xavier_uniform_(bottleneck.down.weight, generator=generator)
            bottlenecks.append(bottleneck.to(backbone.device))
            self.twin.feed_forward(index).register_forward_hook(_added(bottlenecks[-1]))
        self.bottlenecks = nn.ModuleList(bottlenecks)


def _added(bottleneck: Bottleneck) -> Any:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del module, given
        return output + bottleneck(output)

    return hook
