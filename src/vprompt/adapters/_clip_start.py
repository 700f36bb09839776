"""Where the tokens of a CLIP's towers begin, the same way in a search and in what follows it.

Every token passes its block's first norm, so the loss knows its direction alone. A step of SGD
turns a token of size s by about lr / s^2: the size at the start decides how fast the prompt learns.
"""

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest
from vprompt.core.types import PromptTokens
from vprompt.learning.text_adapter import normal_rows

INITS = ("unit", "normal", "uniform", "small")


def start_rows(kind: str, count: int, dim: int, generator: torch.Generator) -> PromptTokens:
    """Return `[count, dim]`.

    `unit` is noise of which every row has the root mean square 1, `normal` N(0, 1), `uniform`
    U[0, 1), and `small` N(0, 0.02^2).
    """
    check_init(kind)
    if kind == "uniform":
        return torch.rand(count, dim, generator=generator)
    if kind == "small":
        return normal_rows(count, dim, 0.02, generator)
    rows = normal_rows(count, dim, 1.0, generator)
    return rows / rows.square().mean(1, keepdim=True).sqrt() if kind == "unit" else rows


def check_init(kind: str) -> None:
    """Raise VPromptError unless the start is known."""
    if kind not in INITS:
        raise VPromptError(f"No start of tokens called {kind!r}.{suggest(kind, INITS)}")
