"""IVLP: independent deep prompts in both towers of a CLIP; in word slots of the text tower.

With 2 + 2 tokens at all blocks it has the parameters of a searched prompt (DPL), which must beat
it. It was published as the baseline of MaPLe.

Reference: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117.
"""

from typing import Any

from vprompt.adapters._coop_family import PUBLISHED
from vprompt.adapters._slots import first_blocks, text_start
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.data.sentences import GENERIC
from vprompt.learning.adapter import Adapter
from vprompt.learning.text_adapter import normal_rows, of_towers, two_towers
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt


def build(
    backbone: Backbone,
    *,
    num_image_tokens: int = 2,
    num_text_tokens: int = 2,
    depth: int | None = None,
    prompt_init_seed: int = 0,
) -> Adapter:
    """Start tokens at the first `depth` blocks of each tower, at all blocks by default.

    In the text tower they overwrite the first words of "a photo of a {}.": at block 0 they start as
    these words, deeper from N(0, 0.02^2), as all of the image tower's. Behind the last of these
    blocks they travel on. A tower with 0 tokens is left as it is.
    """
    clip = two_towers(backbone, "ivlp")
    if num_image_tokens < 1 and num_text_tokens < 1:
        raise VPromptError("IVLP needs tokens in at least one tower, but got 0 and 0.")
    image = text = None
    if num_image_tokens > 0:
        blocks = first_blocks(num_image_tokens, depth, clip.depth, "image")
        generator = stream(prompt_init_seed, "prompt_init, image")
        image = Prompt(normal_rows(len(blocks), clip.dim, 0.02, generator), blocks, persist=True)
    if num_text_tokens > 0:
        blocks = first_blocks(num_text_tokens, depth, clip.text.depth, "text")
        rows = text_start(clip, num_text_tokens, len(blocks), prompt_init_seed)
        text = Prompt(rows, blocks, persist=True)
    return of_towers(clip, image, text, GENERIC, embedded=True)


def training(**settings: object) -> dict[str, Any]:
    """Return the published settings."""
    del settings
    return {**PUBLISHED, "lr": 0.0035, "batch_size": 4, "epochs": 5}
