"""Positions at another image size, resampled as the model of transformers itself does it.

Its models smooth or do not, each in its own way, and timm and open_clip always do.
"""

from typing import Any

import torch
from torch import Tensor

from vprompt.data.preprocessing import pair, shown


@torch.no_grad()
def resample(
    positions: Tensor | None, original: Any, own: tuple[int, int], wanted: tuple[int, int]
) -> tuple[str, bool]:
    """Give `positions` the patches' rows that the original would have at the wanted size.

    They are the model's here, of that size already, patches last. Return a remark, and whether
    features have to be the original's; transformers resamples square grids of square patches alone.
    """
    said = f"positions resampled from {shown(*own)} to {shown(*wanted)} by"
    if positions is None:
        return f"positions computed for {shown(*wanted)} in place of {shown(*own)}", True
    height, width = pair(original.config.patch_size)
    if height != width or own[0] != own[1]:
        return f"{said} the library that runs it, as transformers can only do it for squares", False
    count = (wanted[0] // height) * (wanted[1] // width)
    # Of the tokens that it is given, it reads the shape alone.
    rows = original.embeddings.interpolate_pos_encoding(
        positions[..., -count:, :].reshape(1, count, -1), *wanted
    )
    positions[..., -count:, :] = rows[..., -count:, :]
    return f"{said} transformers", True
