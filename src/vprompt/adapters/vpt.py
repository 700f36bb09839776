"""VPT: learned tokens beside the patches, at the first block (shallow) or at every block (deep).

Reference: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119.
"""

from typing import Any

from vprompt.adapters._start import TRAINING, inherited, start_tokens
from vprompt.learning.adapter import Adapter, PromptAdapter
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, place


def build(
    backbone: Backbone,
    *,
    num_virtual_tokens: int | list[int] = 10,
    deep: bool = True,
    start: str | None = None,
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
    `start` names the folder of an artefact whose prompt goes on being learned, such as that of a
    search: its tokens, their blocks and whether they travel on are then its own.
    """
    if start is not None:
        return PromptAdapter(backbone, inherited(backbone, start), prompt_dropout=prompt_dropout)
    blocks = place(num_virtual_tokens, backbone.depth, deep=deep)
    tokens = start_tokens(backbone, blocks, prompt_init, prompt_init_seed)
    # Rows of a shallow prompt travel on; where a list leaves blocks empty, they are dropped there.
    persist = not deep and isinstance(num_virtual_tokens, int)
    return PromptAdapter(backbone, Prompt(tokens, blocks, persist), prompt_dropout=prompt_dropout)


def training(**settings: object) -> dict[str, Any]:
    """Return the rate at which a prompt leaves its start."""
    del settings
    return dict(TRAINING)
