"""LoRA: low-rank updates of a backbone's linear layers, by the library PEFT.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
arXiv 2106.09685.
"""

import copy
from typing import Any

import torch
from torch import nn

from vprompt.core.errors import VPromptError
from vprompt.learning.adapter import Adapter
from vprompt.learning.twin import TwinAdapter, trainable
from vprompt.models.backbone import Backbone


def build(
    backbone: Backbone,
    *,
    rank: int = 8,
    alpha: int = 8,
    target: list[str] | None = None,
    init_seed: int = 0,
) -> Adapter:
    """Train `W + alpha / rank * B A` for every linear layer called one of `target`.

    The default is `qkv`, timm's queries, keys and values in one layer. B starts at zero, so the
    start changes no feature. Needs the extra `lora`.
    """
    if rank < 1:
        raise VPromptError(f"lora has a rank of at least 1, but got rank={rank}.")
    names = _linear_layers(backbone, target or ["qkv"])
    return LowRankAdapter(backbone, rank, alpha, names, init_seed)


def training(**settings: object) -> dict[str, Any]:
    """Return the rate that low-rank updates want."""
    del settings
    return {"lr": 1e-3}


class LowRankAdapter(TwinAdapter):
    """A twin whose linear layers PEFT has wrapped."""

    def __init__(
        self, backbone: Backbone, rank: int, alpha: int, layers: list[str], seed: int
    ) -> None:
        super().__init__(backbone)
        self.alpha = alpha
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise VPromptError(
                "lora uses the library PEFT, which is not installed. Run: "
                "pip install 'vprompt[lora]'"
            ) from None
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.twin)

    def merged(self) -> Backbone:
        """Return a twin with `W + alpha / rank * B A` in the place of every `W`."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        merged = copy.deepcopy(self.twin)
        for name, layer in [*merged.named_modules()]:
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, own = name.rpartition(".")
                setattr(merged.get_submodule(parent), own, layer.get_base_layer())
        return merged

    def identity(self) -> dict[str, Any]:
        """Add the scale, which no parameter holds."""
        return {**super().identity(), "alpha": self.alpha}


def _linear_layers(backbone: Backbone, target: list[str]) -> list[str]:
    trained = set(trainable(backbone))
    linear = [
        name
        for name, layer in backbone.named_modules()
        if type(layer) is nn.Linear and f"{name}.weight" in trained
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [name for name in target if name not in known]
    if unknown:
        raise VPromptError(
            f"{backbone.name!r} has no linear layer called {unknown[0]!r}. It has: "
            f"{', '.join(known)}. Write `lora(target=['{known[0] if known else ''}'])`."
        )
    return [name for name in linear if name.rpartition(".")[2] in target]
