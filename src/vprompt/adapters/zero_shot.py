"""Zero-shot: class names alone, nothing is trained; what every method on a CLIP must beat.

Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv 2103.00020.
"""

from typing import Any

from vprompt.learning.adapter import Adapter
from vprompt.learning.text_adapter import TextAdapter, chosen_templates, two_towers
from vprompt.models.backbone import Backbone


def build(backbone: Backbone, *, templates: str | None = None) -> Adapter:
    """Read the class names in `templates`: a sentence with {}, `imagenet`, `simple`, or a file.

    Without it, the task's own sentence, or "a photo of a {}.".
    """
    clip = two_towers(backbone, "zero_shot")
    return TextAdapter(clip, None, chosen_templates(clip, templates))


def training(**settings: object) -> dict[str, Any]:
    """Return the training settings: there is nothing to train."""
    del settings
    return {"epochs": 0}
