"""Tiny CLIP: two random towers of a few narrow blocks; milliseconds a step, for tests and examples.

Its towers differ in width and depth, so that nothing can rely on their being alike.
"""

from typing import Any

from vprompt.backbones import open_clip
from vprompt.data.preprocessing import ImageSize
from vprompt.models.two_tower import TwoTower

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"layers": 3, "width": 48, "heads": 4, "context_length": 32, "vocab_size": 49408},
}


def load(*, image_size: ImageSize = 32, seed: int = 0) -> TwoTower:
    """Return a frozen random model; the same seed gives the same weights on every machine."""
    name = f"tiny_clip(seed={seed})" if seed else "tiny_clip"
    vision = {**CONFIG["vision_cfg"], "image_size": image_size}
    return open_clip.from_config({**CONFIG, "vision_cfg": vision}, name=name, seed=seed)
