"""CoOp: learned context words before the class name, at the input of the text tower.

Reference: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv
2109.01134.
"""

from typing import Any

import torch

from vprompt.adapters._coop_family import PUBLISHED
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.learning.adapter import Adapter
from vprompt.learning.text_adapter import TextAdapter, normal_rows, two_towers, word_rows
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt


def build(
    backbone: Backbone,
    *,
    num_context_tokens: int = 16,
    context_init: str | None = None,
    prompt_init_seed: int = 0,
) -> Adapter:
    """Start a context shared by all classes, the class name behind it.

    It is drawn from N(0, 0.02^2), or made of the words of `context_init`, such as "a photo of a",
    whose number then counts: it starts as that sentence.
    """
    clip = two_towers(backbone, "coop")
    if context_init is not None:
        tokens, before = word_rows(clip, context_init), context_init
    else:
        generator = stream(prompt_init_seed, "prompt_init")
        tokens = normal_rows(num_context_tokens, clip.text.dim, 0.02, generator)
        before = " ".join(["X"] * num_context_tokens)
    if not len(tokens):
        raise VPromptError("CoOp needs at least one context token, but got none.")
    prompt = Prompt(tokens, torch.zeros(len(tokens), dtype=torch.long), persist=True)
    return TextAdapter(clip, prompt, (f"{before} {{}}.",))


def training(**settings: object) -> dict[str, Any]:
    """Return the published settings for 16 shots."""
    del settings
    return {**PUBLISHED, "lr": 0.002, "batch_size": 32, "epochs": 200}
