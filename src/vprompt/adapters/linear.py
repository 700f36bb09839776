"""Linear: a linear probe on the frozen features, the baseline every prompt must beat."""

from vprompt.learning.adapter import Adapter, NoAdapter
from vprompt.models.backbone import Backbone


def build(backbone: Backbone) -> Adapter:
    """Train the head alone."""
    return NoAdapter(backbone)
