"""Codec: the files of an artefact as keys and tensors, read as those of a stranger.

No pickle, no links out of the folder, no missing, surplus, misshapen or non-finite tensor.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vprompt.artifacts.header import CONFIG, TENSORS
from vprompt.core.errors import VPromptError
from vprompt.prompts.prompt import Prompt

_PROMPT_KEY = re.compile(r"((text_)?prompt|start)_embeddings\.(\d{1,4})")
_TYPES = ("F32", "F16", "BF16", "F64")  # as safetensors calls them
_LARGEST_HEADER = 10**8  # bytes; safetensors itself reads no longer one
_LARGEST = 2**31  # bytes; a prompt is kilobytes, so more than this is not one


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors in fp32; every value is a finite number."""
    path = folder / TENSORS
    if path.stat().st_size > _LARGEST:
        raise VPromptError(f"{path} has {path.stat().st_size} bytes; no prompt is that large.")
    for key, kind in _types(path).items():
        if kind not in _TYPES:
            raise VPromptError(
                f"{path}: {key!r} is of the type {kind}, and an artefact's tensors are of "
                f"{', '.join(_TYPES[:-1])} or {_TYPES[-1]}. Save it as float32."
            )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise VPromptError(
            f"{path} is truncated or not a safetensors file ({error}). Fetch it again."
        ) from None
    found = {key: value.float() for key, value in tensors.items()}
    for key, value in found.items():
        # As they will be used: a large number in fp64 is not finite in fp32.
        if not torch.isfinite(value).all():
            raise VPromptError(
                f"{path}: {key!r} holds values that are not finite numbers; refused."
            )
    return found


def shapes(data: bytes) -> dict[str, list[int]]:
    """Return the shape of every tensor of a file's bytes, as its header says."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return {key: each["shape"] for key, each in header.items() if key != "__metadata__"}


def _types(path: Path) -> dict[str, str]:
    """Return the type of every tensor as the file's header names it; nothing where it has none.

    The library names a type that it does not know yet as if the file were damaged.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= _LARGEST_HEADER else {}
        return {key: str(value["dtype"]) for key, value in header.items() if key != "__metadata__"}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return {}


def placement(prompt: Prompt | None, depth: int, dim: int) -> dict[str, Any]:
    """Return the keys that say where a prompt's tokens enter; all zero without a prompt."""
    return {
        "num_virtual_tokens": prompt.counts(depth) if prompt else [0] * depth,
        "token_dim": dim,
        "num_layers": depth,
        "persist": prompt.persist if prompt else False,
    }


def prompt_tensors(prompt: Prompt | None, key: str) -> dict[str, Tensor]:
    """Return one tensor `key.{block}` for every block that has tokens."""
    if prompt is None:
        return {}
    return {
        f"{key}.{block}": prompt.tokens[prompt.blocks == block]
        for block in prompt.blocks.unique().tolist()
    }


def take_prompt(
    folder: Path, values: dict[str, Any], tensors: dict[str, Tensor], key: str
) -> Prompt | None:
    """Take out of `tensors` the rows that the config announces; None where it announces none."""
    counts = values["num_virtual_tokens"]
    rows = [
        expect(folder, tensors, f"{key}.{block}", (count, values["token_dim"]))
        for block, count in enumerate(counts)
        if count
    ]
    if not rows:
        return None
    blocks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Prompt(torch.cat(rows), blocks, values["persist"])


def check_none_left(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that the config does not announce."""
    surplus = [key for key in tensors if _PROMPT_KEY.fullmatch(key)]
    if surplus:
        raise VPromptError(f"{folder / TENSORS} holds {surplus}, which {CONFIG} does not announce.")
    if tensors:
        raise VPromptError(f"{folder / TENSORS} holds tensors that no artefact has: {[*tensors]}.")


def expect(folder: Path, tensors: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    """Take a tensor of this shape out of `tensors`."""
    if key not in tensors:
        raise VPromptError(f"{folder / TENSORS} lacks {key!r}.")
    value = tensors.pop(key)
    if tuple(value.shape) != shape:
        raise VPromptError(
            f"{folder / TENSORS}: {key!r} has shape {tuple(value.shape)}, but {CONFIG} says "
            f"{shape}."
        )
    return value
