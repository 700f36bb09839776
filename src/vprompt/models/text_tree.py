"""Text tree: texts that begin alike are read once up to where they part, and padding never.

Under a causal mask a token depends on those before it alone. So the tokens of many texts are the
nodes of a tree, each seen by what follows it, and `a photo of a` before a hundred names is four
nodes. Where prompts are seen from every position, or overwrite the same position of every text,
that stays so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vprompt.core.types import TextEnds, TextIds


@dataclass(frozen=True, eq=False)
class TextTree:
    """The nodes of some texts, those where a text ends first.

    `ids [1, nodes]` are token numbers and `positions [nodes]` their places in a text; `mask [nodes,
    nodes]` is what is added to logits, 0 from a node to itself and what stands before it. The first
    `ends` nodes are where texts end, and text t ends at node `of_text[t]`.
    """

    ids: TextIds
    positions: Tensor
    mask: Tensor
    ends: int
    of_text: Tensor

    def to(self, device: torch.device) -> "TextTree":
        """Return the same tree on another device."""
        ids, positions = self.ids.to(device), self.positions.to(device)
        return TextTree(ids, positions, self.mask.to(device), self.ends, self.of_text.to(device))


def grow(ids: TextIds, ends: TextEnds) -> TextTree:
    """Return the tree of texts, each read up to its end and no further."""
    paths = [tuple(row[: end + 1]) for row, end in zip(ids.tolist(), ends.tolist(), strict=True)]
    last = list(dict.fromkeys(paths))
    inner = [path[:length] for path in last for length in range(1, len(path))]
    nodes = list(dict.fromkeys([*last, *inner]))
    number = {path: row for row, path in enumerate(nodes)}
    return TextTree(
        torch.tensor([[path[-1] for path in nodes]]),
        torch.tensor([len(path) - 1 for path in nodes]),
        _mask(nodes, number),
        len(last),
        torch.tensor([number[path] for path in paths]),
    )


def _mask(nodes: Sequence[tuple[int, ...]], number: dict[tuple[int, ...], int]) -> Tensor:
    mask = torch.full((len(nodes), len(nodes)), -torch.inf)
    rows = [row for row, path in enumerate(nodes) for _ in path]
    columns = [number[path[:length]] for path in nodes for length in range(1, len(path) + 1)]
    mask[rows, columns] = 0.0
    return mask
