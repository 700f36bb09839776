"""VPT: learned tokens beside the patches, at the first block (shallow) or at every block (deep).

Reference: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119.
"""

import torch

from vprompt.adapter import Adapter, PromptAdapter
from vprompt.backbone import Backbone
from vprompt.errors import VPromptError
from vprompt.prompt import Prompt, place, vpt_uniform
from vprompt.randomness import stream
from vprompt.registry import suggest
from vprompt.types import Blocks, PromptTokens

PROMPT_INITS = ("blank", "vpt_uniform", "zeros")
_APART = 0.02  # of the tokens' standard deviation


def build(
    backbone: Backbone,
    *,
    num_virtual_tokens: int | list[int] = 10,
    deep: bool = True,
    prompt_dropout: float = 0.0,
    prompt_init: str = "blank",
    prompt_init_seed: int = 0,
) -> Adapter:
    """Start a prompt; a list of `num_virtual_tokens` names the count of every block.

    `prompt_init` is `blank` (what the patches of an empty image look like at each block: hardly
    disturbs the features), `vpt_uniform` (the papers' random start) or `zeros` (but
    for a trace of noise).
    `prompt_init_seed` is apart from the run's seed and the same by default, so that all learners
    of a pool start from one initialisation: only then do their tokens correspond and average.
    """
    blocks = place(num_virtual_tokens, backbone.depth, deep=deep)
    if prompt_init == "blank":
        tokens = blank_tokens(backbone, blocks, prompt_init_seed)
    elif prompt_init == "vpt_uniform":
        generator = stream(prompt_init_seed, "prompt_init")
        tokens = vpt_uniform(blocks, backbone.dim, backbone.patch_size, generator=generator)
    elif prompt_init == "zeros":
        # Exact zeros would all get the same gradient and never differ.
        generator = stream(prompt_init_seed, "prompt_init")
        tokens = 1e-3 * torch.randn(len(blocks), backbone.dim, generator=generator)
    else:
        raise VPromptError(
            f"No prompt_init called {prompt_init!r}.{suggest(prompt_init, PROMPT_INITS)}"
        )
    # Rows of a shallow prompt travel on; where a list leaves blocks empty, they are dropped there.
    persist = not deep and isinstance(num_virtual_tokens, int)
    return PromptAdapter(backbone, Prompt(tokens, blocks, persist), prompt_dropout=prompt_dropout)


@torch.no_grad()
def blank_tokens(backbone: Backbone, blocks: Blocks, seed: int) -> PromptTokens:
    """Return what patches of an image of the mean colour are, at the input of each token's block.

    Positions are spread evenly. Random tokens disturb the features before training has begun;
    these cost next to nothing (docs/findings.md). Where there are more tokens than patches, equal
    ones would get equal gradients and stay equal for ever, so a little noise sets them apart.
    """
    sequence = backbone.embed(torch.zeros(1, *backbone.data_config.input_size).to(backbone.device))
    patches = sequence.shape[1] - backbone.prefix
    rows = []
    for index, count in enumerate(torch.bincount(blocks, minlength=backbone.depth).tolist()):
        spread = torch.linspace(0, patches - 1, count).round().long() + backbone.prefix
        chosen = sequence[0, spread].float().cpu()
        if count > patches:
            noise = torch.randn(chosen.shape, generator=stream(seed, f"blank, block {index}"))
            chosen = chosen + _APART * chosen.std() * noise
        rows.append(chosen)
        sequence = backbone.block(index, sequence)
    return torch.cat(rows)
