"""VPT on a CLIP: tokens in the image tower alone; the classes stay what their names say.

The method `vpt` on the same backbone trains a linear head instead.

Reference: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119; with class names:
Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117.
"""

from typing import Any

from vprompt.adapters._coop_family import PUBLISHED
from vprompt.core.randomness import stream
from vprompt.learning.adapter import Adapter
from vprompt.learning.text_adapter import TowersAdapter, chosen_templates, normal_rows, two_towers
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, place


def build(
    backbone: Backbone,
    *,
    num_virtual_tokens: int | list[int] = 8,
    deep: bool = True,
    templates: str | None = None,
    prompt_init_seed: int = 0,
) -> Adapter:
    """Start tokens from N(0, 0.02^2); a list of `num_virtual_tokens` names every block's count.

    `templates` is as for `zero_shot`.
    """
    clip = two_towers(backbone, "clip_vpt")
    blocks = place(num_virtual_tokens, clip.depth, deep=deep)
    rows = normal_rows(len(blocks), clip.dim, 0.02, stream(prompt_init_seed, "prompt_init, image"))
    persist = not deep and isinstance(num_virtual_tokens, int)
    chosen = chosen_templates(clip, templates)
    return TowersAdapter(clip, Prompt(rows, blocks, persist), None, chosen, embedded=True)


def training(**settings: object) -> dict[str, Any]:
    """Return the published settings."""
    del settings
    return {**PUBLISHED, "lr": 0.0025, "batch_size": 4, "epochs": 5}
