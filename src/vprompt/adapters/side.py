"""Side: a small network beside the frozen one; a learned share mixes their features.

Reference: Zhang et al., "Side-Tuning: A Baseline for Network Adaptation via Additive Side
Networks", ECCV 2020, arXiv 1912.13503.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest
from vprompt.core.types import Features, Images
from vprompt.learning.adapter import Adapter
from vprompt.models.backbone import Backbone, extract

_SMALLEST_ALEXNET = 63  # pixels; below, its last pooling has nothing to pool


def build(
    backbone: Backbone, *, network: str = "small", alpha: float = 0.0, init_seed: int = 0
) -> Adapter:
    """Train a side network, its projection to the features' width, and the share.

    Features are `a frozen + (1 - a) side` with `a = sigmoid(alpha)`, and `alpha` is where it
    starts: at 0 half of each, as published. `network` is `small` (three convolutions), or for the
    paper `alexnet`, which starts from ImageNet weights that torchvision fetches over the network,
    or finds in torch's cache; `alexnet_random` starts without them.
    """
    if network not in NETWORKS:
        raise VPromptError(f"side has no network {network!r}.{suggest(network, NETWORKS)}")
    if network != "small" and min(backbone.data_config.input_size[1:]) < _SMALLEST_ALEXNET:
        raise VPromptError(
            f"AlexNet needs images of {_SMALLEST_ALEXNET} pixels, but {backbone.name!r} sees "
            f"{backbone.data_config.shown_size}. Use network=small, or a larger --image-size."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        side, width = NETWORKS[network]()
        projection = nn.Linear(width, backbone.feature_dim, bias=False)
    adapter = SideNetwork(backbone, side, projection, alpha)
    if network == "alexnet":  # an artefact brings the weights along
        adapter.opens_as = "side(network=alexnet_random)"
    return adapter


def training(**settings: object) -> dict[str, Any]:
    """Return the rate that a side network wants."""
    del settings
    return {"lr": 1e-3}


class SideNetwork(Adapter):
    """The frozen backbone's features and a side network's, mixed."""

    def __init__(
        self, backbone: Backbone, side: nn.Module, projection: nn.Linear, alpha: float
    ) -> None:
        super().__init__()
        self.backbone, device = backbone, backbone.device
        self.side, self.projection = side.to(device), projection.to(device)
        self.alpha = nn.Parameter(torch.tensor(float(alpha), device=device))

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the mixed features; the side network has neither dropout nor batch norm."""
        del generator
        with torch.no_grad():
            frozen = extract(self.backbone, images).float()
        beside = self.projection(self.side(images).flatten(1)).float()
        share = torch.sigmoid(self.alpha)
        return share * frozen + (1 - share) * beside

    def prompt(self) -> None:
        """Return nothing: no prompt is learned."""


def _small() -> tuple[nn.Module, int]:
    layers = [
        nn.Conv2d(3, 32, 5, stride=4, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
    ]
    return nn.Sequential(*layers), 128 * 2 * 2


def _alexnet_random() -> tuple[nn.Module, int]:
    from torchvision.models import alexnet

    whole = alexnet(weights=None)
    return nn.Sequential(whole.features, whole.avgpool), 256 * 6 * 6


def _alexnet() -> tuple[nn.Module, int]:
    from torchvision.models import AlexNet_Weights

    weights = AlexNet_Weights.IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no place on disk, another hash
        raise VPromptError(
            f"The ImageNet weights of AlexNet could not be fetched ({error}). With a network they "
            f"come from {weights.url}; without one, put that file into the folder `checkpoints` of "
            "torch.hub.get_dir(), or use network=alexnet_random or network=small."
        ) from None
    network, width = _alexnet_random()
    prefix, own = "features.", network[0]  # type: ignore[index]  # the first of two
    own.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    return network, width


NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "small": _small,
    "alexnet": _alexnet,
    "alexnet_random": _alexnet_random,
}
