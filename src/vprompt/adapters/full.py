"""Full: the whole backbone is trained, in a copy; the cost that all other methods avoid."""

from typing import Any

from vprompt.learning.adapter import Adapter
from vprompt.learning.twin import TwinAdapter
from vprompt.models.backbone import Backbone


def build(backbone: Backbone) -> Adapter:
    """Train every parameter of a twin, position embeddings and class token included."""
    return TwinAdapter(backbone, [name for name, _ in backbone.named_parameters()])


def training(**settings: object) -> dict[str, Any]:
    """Return a rate at which pre-trained weights survive."""
    del settings
    return {"lr": 1e-4}
