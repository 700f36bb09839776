"""ATTEMPT: an attention mixes the prompts of a pool anew for every image; made by `combine`.

Reference: Asai et al., "ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of
Soft Prompts", EMNLP 2022, arXiv 2205.11961.
"""

import torch

from vprompt.core.errors import VPromptError
from vprompt.learning.adapter import Adapter
from vprompt.learning.mixture import InstanceMixture
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, place


def build(
    backbone: Backbone,
    *,
    sources: int = 0,
    num_virtual_tokens: int | list[int] = 10,
    persist: bool = False,
    bottleneck: int = 100,
) -> Adapter:
    """Return a mixture of `sources` empty prompts, for an artefact's tensors to be put into.

    It is trained by `vprompt combine --method attempt`, which has a pool.
    """
    if sources < 1:
        raise VPromptError(
            "attempt mixes the prompts of a pool. Use `vprompt combine TASK --pool POOL --method "
            "attempt`."
        )
    blocks = place(num_virtual_tokens, backbone.depth, deep=not persist)
    empty = Prompt(torch.zeros(len(blocks), backbone.dim), blocks, persist)
    return InstanceMixture(backbone, [empty] * sources, empty, bottleneck=bottleneck)
