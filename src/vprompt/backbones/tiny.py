"""Tiny: timm's test models with random weights; milliseconds a step, for tests and examples.

Reference: the `test_vit` family of timm, made for tests.
"""

from vprompt.backbones import timm_vit
from vprompt.data.preprocessing import ImageSize
from vprompt.models.backbone import Backbone


def load(*, model: str = "test_vit", image_size: ImageSize = 32, seed: int = 0) -> Backbone:
    """Return a frozen random model; the same seed gives the same weights on every machine."""
    backbone = timm_vit.load(model=model, pretrained=False, image_size=image_size, seed=seed)
    backbone.name = (
        "tiny" if (model, seed) == ("test_vit", 0) else f"tiny(model={model}, seed={seed})"
    )
    backbone.remark = f"{backbone.name} has random weights: for tests and timings, not for results"
    return backbone
