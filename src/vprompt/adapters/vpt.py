"""VPT: learned tokens beside the patches, at the first block (shallow) or at every block (deep).

Reference: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119.
"""

import torch

from vprompt.adapter import Adapter, PromptAdapter
from vprompt.backbone import Backbone
from vprompt.errors import VPromptError
from vprompt.prompt import Prompt, place, vpt_uniform
from vprompt.randomness import stream


def build(
    backbone: Backbone,
    *,
    num_virtual_tokens: int | list[int] = 10,
    deep: bool = False,
    prompt_dropout: float = 0.0,
    prompt_init: str = "vpt_uniform",
    prompt_init_seed: int = 0,
) -> Adapter:
    """Start a prompt; a list of `num_virtual_tokens` names the count of every block.

    `prompt_init_seed` is apart from the run's seed and the same by default, so that all learners
    of a pool start from one initialisation: only then do their tokens correspond and average.
    """
    blocks = place(num_virtual_tokens, backbone.depth, deep=deep)
    if prompt_init == "vpt_uniform":
        generator: torch.Generator = stream(prompt_init_seed, "prompt_init")
        tokens = vpt_uniform(blocks, backbone.dim, backbone.patch_size, generator=generator)
    elif prompt_init == "zeros":
        tokens = torch.zeros(len(blocks), backbone.dim)
    else:
        raise VPromptError(f"No prompt_init called {prompt_init!r}. There are: vpt_uniform, zeros.")
    # Rows of a shallow prompt travel on; where a list leaves blocks empty, they are dropped there.
    persist = not deep and isinstance(num_virtual_tokens, int)
    return PromptAdapter(backbone, Prompt(tokens, blocks, persist), prompt_dropout=prompt_dropout)
