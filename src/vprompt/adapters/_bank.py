"""Bank: one tower's prompts of every candidate length, and how weights choose among them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vprompt.core.types import PromptTokens
from vprompt.models.attention import Attend, gated, mixture, survival
from vprompt.prompts.prompt import Prompt, place


class CandidateBank(nn.Module):
    """Tokens for all candidates in every block of a tower, as keys and values.

    In a `separate` bank the candidates' tokens stand side by side, each of its own; in a `nested`
    one a length uses the first tokens of the longest. A candidate of length 0 has none.
    """

    blocks: Tensor

    def __init__(
        self, lengths: Sequence[int], depth: int, tokens: PromptTokens, *, nested: bool
    ) -> None:
        super().__init__()
        self.lengths, self.depth, self.nested = list(lengths), depth, nested
        self.tokens = nn.Parameter(tokens.detach().clone())
        per_block = bank_size(lengths, nested=nested)
        self.register_buffer("blocks", place(per_block, depth, deep=True).to(tokens.device))

    def whole(self) -> Prompt:
        """Return the tokens of all candidates as one prompt, with their graph."""
        return Prompt(self.tokens, self.blocks, False)

    def attend(self, weights: Tensor) -> Callable[[int], Attend]:
        """Return every block's attention over `whole`, for weights `[depth, candidates]`."""

        def of_block(index: int) -> Attend:
            if self.nested:
                return gated(survival(weights[index], self.lengths))
            return mixture(weights[index], self.lengths)

        return of_block

    def alone(self, choice: Sequence[int], like: Tensor) -> Tensor:
        """Return weights `[depth, candidates]` that are 1 at every block's choice."""
        weights = torch.zeros_like(like)
        weights[torch.arange(self.depth), list(choice)] = 1
        return weights

    def counts(self, choice: Sequence[int]) -> list[int]:
        """Return the length of every block."""
        return [self.lengths[index] for index in choice]

    def chosen(self, choice: Sequence[int]) -> Prompt | None:
        """Return the prompt of every block's choice, with its graph; None where it has no token."""
        counts = self.counts(choice)
        if not sum(counts):
            return None
        whole, rows = len(self.tokens) // self.depth, []
        for block, index in enumerate(choice):
            first = block * whole + (0 if self.nested else sum(self.lengths[:index]))
            rows.append(torch.arange(first, first + counts[block]))
        return Prompt(self.tokens[torch.cat(rows)], place(counts, self.depth, deep=True), False)


def bank_size(lengths: Sequence[int], *, nested: bool) -> int:
    """Return the tokens that a block of a bank holds."""
    return max(lengths) if nested else sum(lengths)
