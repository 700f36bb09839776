"""Full: the whole backbone is trained, in a copy; the cost that all other methods avoid."""

from typing import Any

from vprompt.learning.adapter import Adapter
from vprompt.learning.twin import TwinAdapter, trainable
from vprompt.models.backbone import Backbone


def build(backbone: Backbone) -> Adapter:
    """Train every parameter of a twin, position embeddings and class token included.

    Of two towers it is the image tower's.
    """
    return TwinAdapter(backbone, trainable(backbone))


def training(**settings: object) -> dict[str, Any]:
    """Return a rate at which pre-trained weights survive."""
    del settings
    return {"lr": 1e-4}
