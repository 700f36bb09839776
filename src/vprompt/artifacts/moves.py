"""Moves: what a prompt learned since its start, and sums of it with a free scale.

A prompt is the start it was learned from plus a *move*, its task vector. A convex sum of prompts is
the start plus the average of their moves, and an average of moves that differ is short. Summed as
moves, `start + sum_i c_i move_i` with coefficients that need not add up to 1, a pool keeps its full
length (docs/moves.md).

Reference: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089;
Belanec et al., "Task Prompt Vectors: Effective Initialization through Multi-Task Soft-Prompt
Transfer", ECML PKDD 2025, arXiv 2408.01119, for soft prompts of language models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vprompt.artifacts.catalogue import STILL
from vprompt.core.errors import VPromptError
from vprompt.core.types import LayerWeights, SourceTokens, Weights
from vprompt.prompts.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Moves:
    """The moves `[sources, tokens, dim]` of a pool from one `start`, tokens in correspondence.

    `sizes` `[sources]` are |move| / |start|. `centred` names the sources whose start is not known:
    their moves are measured from the mean of the pool. A token that a source does not have moves
    by zero. `starts` counts the different starts; of several, `start` is the mean.
    """

    start: Prompt
    vectors: SourceTokens
    names: tuple[str, ...]
    centred: tuple[str, ...] = ()
    starts: int = 1

    @property
    def sizes(self) -> Weights:
        """How far every source moved, in norms of its start."""
        lengths = self.vectors.flatten(1).norm(dim=1)
        return lengths / self.start.tokens.double().norm().clamp_min(1e-30)

    def cosines(self) -> Tensor:
        """Return how alike the directions of two sources are, `[sources, sources]`."""
        flat = self.vectors.flatten(1)
        units = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
        return units @ units.T

    def still(self) -> list[str]:
        """Return the sources that are their start: they carry nothing for a sum."""
        return [
            name for name, size in zip(self.names, self.sizes.tolist(), strict=True) if size < STILL
        ]

    def select(self, rows: Sequence[int]) -> "Moves":
        """Return some of the sources, in this order."""
        names = tuple(self.names[row] for row in rows)
        centred = tuple(name for name in self.centred if name in names)
        return Moves(self.start, self.vectors[list(rows)], names, centred, self.starts)

    def sum(self, coefficients: Weights | LayerWeights) -> Prompt:
        """Return `start + sum_i c_i move_i`; the coefficients need no sum of 1.

        They are `[sources]`, or `[layers, sources]`: a row for every block of the backbone.
        """
        if coefficients.shape[-1] != len(self.vectors) or coefficients.ndim > 2:
            raise VPromptError(
                f"A sum of {len(self.vectors)} moves needs as many coefficients, but got "
                f"{tuple(coefficients.shape)}."
            )
        rows = coefficients.to(self.vectors)
        if rows.ndim == 1:
            moved = torch.einsum("s,scd->cd", rows, self.vectors)
        else:
            moved = torch.einsum("cs,scd->cd", rows[self.start.blocks], self.vectors)
        tokens = self.start.tokens.to(moved) + moved
        return self.start.with_tokens(tokens.to(self.start.tokens.dtype))


def measure(
    prompts: Sequence[Prompt], starts: Sequence[Prompt | None], names: Sequence[str]
) -> Moves:
    """Return the moves of prompts whose tokens correspond; None stands for an unknown start.

    Prompts may leave slots empty, as tokens of NaN. Where some starts are unknown, those prompts
    are measured from the mean of all prompts, and added to the mean of the known starts.
    """
    stacked = torch.stack([prompt.tokens.double() for prompt in prompts])
    filled = ~stacked.isnan().any(2, keepdim=True)
    tokens = stacked.nan_to_num()
    mean = tokens.sum(0) / filled.sum(0).clamp_min(1)
    known = [start is not None for start in starts]
    given = torch.stack([mean if start is None else start.tokens.double() for start in starts])
    filled = filled & ~given.isnan().any(2, keepdim=True)
    origins = given.nan_to_num()
    base, count = mean, 1
    if any(known):
        rows = torch.tensor(known)
        base = (origins * filled)[rows].sum(0) / filled[rows].sum(0).clamp_min(1)
        empty = filled[rows].sum(0) == 0
        base = torch.where(empty, mean, base)
        count = _count_different(origins[rows], filled[rows])
    vectors = (tokens - origins) * filled
    first = prompts[0]
    start = Prompt(base.float(), first.blocks, first.persist)
    centred = tuple(name for name, has in zip(names, known, strict=True) if not has)
    return Moves(start, vectors, tuple(names), centred, count)


def size_of(prompt: Prompt, start: Prompt) -> float:
    """Return |move| / |start| of one prompt."""
    moved = (prompt.tokens.double() - start.tokens.double()).norm()
    return float(moved / start.tokens.double().norm().clamp_min(1e-30))


def _count_different(origins: Tensor, filled: Tensor) -> int:
    """Count the starts that differ by more than rounding, where both have a token."""
    kinds: list[int] = []
    for row in range(len(origins)):
        both = [filled[row] & filled[other] for other in kinds]
        near = [
            bool(((origins[row] - origins[other]) * shared).norm() <= STILL * origins[row].norm())
            for other, shared in zip(kinds, both, strict=True)
        ]
        if not any(near):
            kinds.append(row)
    return len(kinds)
