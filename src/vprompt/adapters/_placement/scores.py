"""Scores: how idle a token is where it stands, from gradients that training takes anyway.

A positive score means that the loss would fall, to first order, if the token were not there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vprompt.core.types import Blocks, PromptTokens


def taylor(tokens: PromptTokens, gradient: PromptTokens) -> Tensor:
    """Return <dL/dp, p> of every token: the slope along a factor on the vector, as published.

    A deep token is only seen through a LayerNorm, which such a factor hardly passes: the score is
    eps / (var + eps) times what `taylor_norm` measures.
    """
    return (wide(gradient) * wide(tokens.detach())).sum(1)


def norm_share(tokens: PromptTokens, blocks: Blocks) -> Tensor:
    """Return minus each token's share of the norms in its block: the smallest is the most idle."""
    norms = wide(tokens.detach()).norm(dim=1)
    totals = norms.new_zeros(int(blocks.max()) + 1).index_add(0, blocks, norms)
    return -norms / totals[blocks].clamp_min(1e-12)


def clip_factor(scores: Tensor, others: Sequence[Tensor], limit: float) -> Tensor:
    """Return min(1, limit / norm) over scores and other gradients together.

    In the released code the gradients of the gates are clipped jointly with the head's before they
    are read, so a large gradient of the head shrinks a batch's scores.
    """
    squares = [wide(part).square().sum() for part in (scores, *others)]
    return (limit / torch.stack(squares).sum().sqrt().clamp_min(1e-12)).clamp_max(1)


def wide(values: Tensor) -> Tensor:
    """Return values in fp32 at least, whatever autocast made of them."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
