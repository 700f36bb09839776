"""Bias: every bias of the backbone is trained, as BitFit does, and nothing else but the head.

Reference: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
Masked Language-models", ACL 2022, arXiv 2106.10199.
"""

from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.learning.adapter import Adapter
from vprompt.learning.twin import TwinAdapter, trainable
from vprompt.models.backbone import Backbone


def build(backbone: Backbone) -> Adapter:
    """Train the biases of a twin: of projections, of norms and of the patch embedding."""
    names = [name for name in trainable(backbone) if "bias" in name.rpartition(".")[2]]
    if not names:
        raise VPromptError(f"{backbone.name!r} has no biases to train. Use another method.")
    return TwinAdapter(backbone, names)


def training(**settings: object) -> dict[str, Any]:
    """Return the rate that the biases want."""
    del settings
    return {"lr": 1e-3}
