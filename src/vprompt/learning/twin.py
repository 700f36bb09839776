"""Twin: a second backbone whose trained parts are its own and whose other tensors are shared.

Methods that change a model from within train a twin. The backbone that was given stays as it is,
bit for bit, and what is not trained takes no memory twice.
"""

import copy
from collections.abc import Collection

import torch

from vprompt.core.types import Features, Images
from vprompt.learning.adapter import Adapter, count_frozen
from vprompt.models.backbone import Backbone, Entering, extract
from vprompt.models.two_tower import TwoTower


def twin_of(backbone: Backbone, trained: Collection[str] = ()) -> Backbone:
    """Return a twin in which the `trained` parameters are copies that take gradients."""
    wanted = set(trained)
    shared = [p for name, p in backbone.named_parameters() if name not in wanted]
    memo = {id(tensor): tensor for tensor in (*shared, *backbone.buffers())}
    twin = copy.deepcopy(backbone, memo)
    twin.__dict__.pop("fingerprint", None)  # computed of the weights before training
    for name, parameter in twin.named_parameters():
        if name in wanted:
            parameter.requires_grad_(True)
    return twin


def trainable(backbone: Backbone) -> list[str]:
    """Return the names of the parameters that a twin may train: what an image's features depend on.

    Those are all, but for two towers: a loss on images gives the text tower no gradient. They are
    found by a gradient and not by name, so any two towers will do.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if not isinstance(backbone, TwoTower):
        return names
    twin = twin_of(backbone, names)
    images = torch.zeros(1, *backbone.data_config.input_size, device=backbone.device)
    parameters = dict(twin.named_parameters())
    features = extract(twin, images).sum()
    found = torch.autograd.grad(features, [parameters[name] for name in names], allow_unused=True)
    return [name for name, slope in zip(names, found, strict=True) if slope is not None]


class TwinAdapter(Adapter):
    """A method that changes a backbone from within: it trains parts of a twin."""

    def __init__(self, backbone: Backbone, trained: Collection[str] = ()) -> None:
        super().__init__()
        # In this order: names of shared tensors are then those of the backbone, not state.
        self.backbone = backbone
        self.twin = twin_of(backbone, trained)

    @property
    def num_frozen(self) -> int:
        """How many numbers of the twin stay as they were; those that train have left it."""
        return count_frozen(self.twin)

    def features(
        self, images: Images | Entering, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return the features of the twin."""
        del generator
        return extract(self.twin, images)

    def prompt(self) -> None:
        """Return nothing: no prompt is learned."""

    def merged(self) -> Backbone | None:
        """Return the twin, where it has its backbone's tensors and nothing was hung into it."""
        same = self.twin.state_dict().keys() == self.backbone.state_dict().keys()
        hooked = any(module._forward_hooks for module in self.twin.modules())
        return self.twin if same and not hooked else None
