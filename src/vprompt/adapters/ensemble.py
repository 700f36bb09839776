"""Ensemble: several prompts side by side under one head, in one batch; made by `combine`.

Reference: Hansen and Salamon, "Neural Network Ensembles", IEEE TPAMI 1990, for the principle; here
the members are one pool's sum at several scales (docs/moves.md).
"""

import torch

from vprompt.core.errors import VPromptError
from vprompt.learning.adapter import Adapter
from vprompt.learning.ensemble import Ensemble
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, place


def build(
    backbone: Backbone,
    *,
    prompts: int = 0,
    num_virtual_tokens: int | list[int] = 10,
    persist: bool = False,
    plain: bool = True,
) -> Adapter:
    """Return `prompts` empty prompts, for an artefact's tensors to be put into.

    With `plain` the features without a prompt are among those that the head reads.
    """
    if prompts < 1:
        raise VPromptError(
            "ensemble needs the prompts of a pool. Use `vprompt combine TASK --pool POOL --form "
            "ensemble`."
        )
    blocks = place(num_virtual_tokens, backbone.depth, deep=not persist)
    empty = Prompt(torch.zeros(len(blocks), backbone.dim), blocks, persist)
    return Ensemble(backbone, [empty] * prompts, plain=plain)
