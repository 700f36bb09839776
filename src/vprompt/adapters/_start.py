"""Start: where the tokens of a prompt begin, the same way for every method that learns tokens."""

import torch
from torch import Tensor

from vprompt.artifacts import artifact
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.registry import suggest
from vprompt.core.types import Blocks, PromptTokens
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, vpt_uniform

PROMPT_INITS = ("blank", "vpt_uniform", "zeros")
_APART = 0.02  # of the tokens' standard deviation

# At smaller rates a prompt ends where it began (docs/findings.md).
TRAINING = {"lr": 0.1, "lr_unit": "start"}


def start_tokens(backbone: Backbone, blocks: Blocks, prompt_init: str, seed: int) -> PromptTokens:
    """Return the tokens `[count, dim]` that stand in `blocks` before training.

    `prompt_init` is `blank` (what the patches of an empty image look like at each block),
    `vpt_uniform` (the papers' random start) or `zeros` (but for a trace of noise).
    """
    if prompt_init == "blank":
        return blank_tokens(backbone, blocks, seed)
    generator = stream(seed, "prompt_init")
    if prompt_init == "vpt_uniform":
        return vpt_uniform(blocks, backbone.dim, backbone.patch_size, generator=generator)
    if prompt_init == "zeros":
        # Exact zeros would all get the same gradient and never differ.
        return 1e-3 * torch.randn(len(blocks), backbone.dim, generator=generator)
    raise VPromptError(
        f"No prompt_init called {prompt_init!r}.{suggest(prompt_init, PROMPT_INITS)}"
    )


def inherited(backbone: Backbone, folder: str) -> Prompt:
    """Return the prompt of an artefact that was made on this backbone, to go on learning it."""
    found = artifact.load(folder)
    artifact.check_fits(found.config, backbone, what=f"The prompt in {folder}")
    if found.prompt is None:
        raise VPromptError(f"{folder} holds no prompt to go on from. Name another artefact.")
    return found.prompt


def blank_tokens(backbone: Backbone, blocks: Blocks, seed: int) -> PromptTokens:
    """Return what patches of an image of the mean colour are, at the input of each token's block.

    Positions are spread evenly. Random tokens disturb the features before training has begun;
    these cost next to nothing (docs/findings.md). Where there are more tokens than patches, equal
    ones would get equal gradients and stay equal for ever, so a little noise sets them apart.
    """
    rows = []
    for index, patches in enumerate(blank_patches(backbone)):
        count = int((blocks == index).sum())
        chosen = patches[torch.linspace(0, len(patches) - 1, count).round().long()]
        if count > len(patches):
            noise = torch.randn(chosen.shape, generator=stream(seed, f"blank, block {index}"))
            chosen = chosen + _APART * chosen.std() * noise
        rows.append(chosen)
    return torch.cat(rows)


@torch.no_grad()
def blank_patches(backbone: Backbone) -> list[Tensor]:
    """Return the patches `[patches, dim]` of an image of the mean colour at every block's input."""
    sequence = backbone.embed(torch.zeros(1, *backbone.data_config.input_size).to(backbone.device))
    found = []
    for index in range(backbone.depth):
        found.append(sequence[0, backbone.prefix :].float().cpu())
        if index + 1 < backbone.depth:
            sequence = backbone.block(index, sequence)
    return found
