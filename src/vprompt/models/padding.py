"""Padding: the prompt rows of several prompts or images in one tensor, shorter sets filled up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """Prompt rows `[entries, most, dim]` of every prompt or image; shorter sets are filled up.

    `present` `[entries, most]` says which are real; it stays on the CPU, where it decides things.
    """

    tokens: Tensor
    present: Tensor

    @classmethod
    def padded(cls, sets: Sequence[Tensor]) -> "PaddedRows":
        """Fill every set up to the longest."""
        lengths = torch.tensor([len(rows) for rows in sets])
        present = torch.arange(int(lengths.max())) < lengths[:, None]
        return cls(nn.utils.rnn.pad_sequence(list(sets), batch_first=True), present)

    def of(self, which: Tensor) -> "PaddedRows":
        """Return the rows of entry `which[i]` for every i."""
        return PaddedRows(self.tokens[which.to(self.tokens.device)], self.present[which])

    def after(self, earlier: "PaddedRows") -> "PaddedRows":
        """Return these rows, and the earlier ones for entries that bring none."""
        most = max(self.present.shape[1], earlier.present.shape[1])
        new, old = self._filled(most), earlier._filled(most)
        brings = self.present.any(1, keepdim=True)
        chosen = brings[..., None].to(new.tokens.device)
        tokens = torch.where(chosen, new.tokens.to(old.tokens.dtype), old.tokens)
        return PaddedRows(tokens, torch.where(brings, new.present, old.present))

    def _filled(self, most: int) -> "PaddedRows":
        missing = most - self.present.shape[1]
        tokens = functional.pad(self.tokens, (0, 0, 0, missing))
        return PaddedRows(tokens, functional.pad(self.present, (0, missing)))
