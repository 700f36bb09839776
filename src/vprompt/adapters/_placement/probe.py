"""Probe: gates on a prompt's keys whose slopes say which token is idle and what would help.

The gates stand at 1 on the prompt's own keys and at 0 on those of candidates, so a pass with a
probe computes what a pass without one does, and its ordinary backward pass fills the slopes.
"""

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Blocks, Images, PromptTokens
from vprompt.models.attention import Attend, KeyValue, gated
from vprompt.models.backbone import Backbone, extract
from vprompt.prompts.prompt import Prompt


class Probe:
    """Slopes of one pass, for tokens in `blocks` `[count]` of `depth` blocks.

    `gates` `[count]`: at 1; its slope is minus the first-order effect of removing a token.
    `inserted` `[candidates, depth]`: at 0; minus its slope is the gain of inserting a candidate.
    `scales` `[count]`: at 1, on how far a token's key and value lie from those of the empty token.
    LN maps the zero vector to its bias, so the slope is <dL/dp^, p^>, the Taylor score without
    the factor eps / (var + eps) (exactly so where the attention has no norm of its own on keys).

    `candidates` are vectors `[candidates, depth, dim]`, one for every block.
    """

    def __init__(
        self,
        blocks: Blocks,
        depth: int,
        *,
        candidates: Tensor | None = None,
        scaled: bool = False,
        exact: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.blocks, self.depth, self.exact, self.scaled = blocks, depth, exact, scaled
        self.candidates = candidates
        count = 0 if candidates is None else len(candidates)
        at = torch.ones(len(blocks), device=blocks.device, dtype=dtype)
        self.gates = at.clone().requires_grad_()
        self.scales = at.clone().requires_grad_()
        self.inserted = at.new_zeros(count, depth).requires_grad_()

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors whose gradients are the slopes, by name."""
        found = {"gates": self.gates}
        if self.candidates is not None:
            found["inserted"] = self.inserted
        if self.scaled:
            found["scales"] = self.scales
        return found

    def rows(self, tokens: PromptTokens) -> tuple[Tensor, Tensor]:
        """Return the prompt's tokens with everything that is probed, and where each stands."""
        parts, places = [tokens], [self.blocks]
        if self.candidates is not None:
            parts.append(self.candidates.flatten(0, 1).to(tokens))
            every = torch.arange(self.depth, device=self.blocks.device)
            places.append(every.repeat(len(self.candidates)))
        if self.scaled:
            taken = self.blocks.unique()
            parts.append(tokens.new_zeros(len(taken), tokens.shape[1]))
            places.append(taken)
        return torch.cat(parts), torch.cat(places)

    def attend(self, block: int) -> Attend:
        """Return the attention of one block: its own tokens, candidates, then the empty token."""
        own = (self.blocks == block).nonzero().flatten()
        inner = gated(torch.cat([self.gates[own], self.inserted[:, block]]), exact=self.exact)
        if not self.scaled or not len(own):
            return inner
        return _from_empty(self.scales[own], inner)


def sorted_prompt(tokens: PromptTokens, blocks: Blocks) -> tuple[Prompt, Tensor]:
    """Return a prompt that is dropped after its block, and the order of rows that it took."""
    order = torch.argsort(blocks, stable=True)
    return Prompt(tokens[order], blocks[order], persist=False), order


def check_reachable(backbone: Backbone, images: Images) -> None:
    """Raise VPromptError where gates cannot reach the attention of some block."""
    blocks = torch.arange(backbone.depth, device=backbone.device)
    probe = Probe(blocks, backbone.depth)
    tokens = torch.zeros(backbone.depth, backbone.dim, device=backbone.device)
    prompt, _ = sorted_prompt(tokens, blocks)
    try:
        extract(backbone, images, prompt, attend=probe.attend)
    except VPromptError as error:
        raise VPromptError(
            f"{error} Or place by what needs no gates: score=taylor or score=norm, with "
            "alloc=random, alloc=thompson or alloc=ppo."
        ) from None


def _from_empty(scales: Tensor, inner: Attend) -> Attend:
    """Scale how far own keys and values lie from those of the last row, which is then left out."""
    factor = (scales - 1)[:, None]

    def attend(
        query: Tensor, own: KeyValue, prompt: KeyValue, scale: float, mask: Tensor | None
    ) -> Tensor:
        moved = [_scaled(rows, factor) for rows in (prompt.key, prompt.value)]
        return inner(query, own, KeyValue(*moved), scale, mask)

    return attend


def _scaled(rows: Tensor, factor: Tensor) -> Tensor:
    count = len(factor)
    mine, others, empty = rows[:, :, :count], rows[:, :, count:-1], rows[:, :, -1:]
    # The factor is 0: what is added is nothing but a slope.
    return torch.cat([mine + factor * (mine - empty), others], dim=2)
