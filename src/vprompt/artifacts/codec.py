"""Codec: the files of an artefact as keys and tensors, read as those of a stranger.

No pickle, no links out of the folder, no missing, surplus, misshapen or non-finite tensor.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vprompt.artifacts.header import CONFIG, TENSORS
from vprompt.core.errors import VPromptError
from vprompt.prompts.prompt import Prompt

_PROMPT_KEY = re.compile(r"((text_)?prompt|start)_embeddings\.(\d{1,4})")
STATE = "adapter."
# As safetensors calls them.
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_LARGEST_HEADER = 2**22  # bytes; thousands of tensors
_PIECE = 2**24  # bytes that are looked through at a time
_LARGEST = 2**31  # bytes; a prompt is kilobytes, so more than this is not one


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors in fp32, of a file that `check_header` has passed."""
    path = folder / TENSORS
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise VPromptError(
            f"{path} is truncated or not a safetensors file ({error}). Fetch it again."
        ) from None


def check_header(path: Path, announced: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the names of the tensors, of types and shapes that an artefact has, all finite.

    The header is compared with what the config announces before any value is read, and values are
    looked through a piece at a time. Whether all are there is the caller's question.
    """
    if path.stat().st_size > _LARGEST:
        raise VPromptError(f"{path} has {path.stat().st_size} bytes; no prompt is that large.")
    start, entries = _header(path)
    for key, entry in entries.items():
        if entry.kind not in _TYPES:
            raise VPromptError(
                f"{path}: {key!r} is of the type {entry.kind}, and an artefact's tensors are of "
                f"{', '.join(list(_TYPES)[:-1])} or {list(_TYPES)[-1]}. Save it as float32."
            )
        if key in announced and entry.shape != announced[key]:
            raise VPromptError(
                f"{path}: {key!r} has shape {entry.shape}, but {CONFIG} says {announced[key]}."
            )
        size = math.prod(entry.shape) * _TYPES[entry.kind].itemsize
        if min(entry.shape, default=0) < 0 or entry.end - entry.begin != size:
            raise VPromptError(f"{path} is damaged: {key!r} is not as long as its shape says.")
    if start + max((entry.end for entry in entries.values()), default=0) != path.stat().st_size:
        raise VPromptError(f"{path} is truncated or not a safetensors file. Fetch it again.")
    surplus = [key for key in entries if key not in announced and not key.startswith(STATE)]
    check_none_left(path.parent, surplus)
    with path.open("rb") as file:
        for key, entry in entries.items():
            _check_finite(path, file, start, key, entry)
    return tuple(entries)


@dataclass(frozen=True)
class _Entry:
    """What a header says of one tensor."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _check_finite(path: Path, file: Any, start: int, key: str, entry: _Entry) -> None:
    """Refuse what is no number, a piece at a time."""
    file.seek(start + entry.begin)
    left = entry.end - entry.begin
    while left > 0 and (data := file.read(min(left, _PIECE))):
        left -= len(data)
        if len(data) % _TYPES[entry.kind].itemsize:
            return  # cut short, which the library says
        # As they will be used: a large number in fp64 is not finite in fp32.
        values = torch.frombuffer(bytearray(data), dtype=_TYPES[entry.kind]).float()
        if not torch.isfinite(values).all():
            raise VPromptError(
                f"{path}: {key!r} holds values that are not finite numbers; refused."
            )


def shapes(data: bytes) -> dict[str, list[int]]:
    """Return the shape of every tensor of a file's bytes, as its header says."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return {key: each["shape"] for key, each in header.items() if key != "__metadata__"}


def _header(path: Path) -> tuple[int, dict[str, _Entry]]:
    """Return where the values begin, and what the file's header says of every tensor.

    The library names a type that it does not know yet as if the file were damaged.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(size))
        found = {}
        for key, value in header.items():
            if key != "__metadata__":
                begin, end = map(int, value["data_offsets"])
                shape = tuple(map(int, value["shape"]))
                found[key] = _Entry(str(value["dtype"]), shape, begin, end)
        return 8 + size, found
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        reason = str(error) or type(error).__name__
        raise VPromptError(
            f"{path} is truncated or not a safetensors file ({reason}). Fetch it again."
        ) from None


def announced(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a config announces, and their shapes; some need not be there."""
    width = config["feature_dim"]
    classes = config["num_classes"]
    found = {
        "head.weight": (classes, config.get("head_features", width)),
        "head.bias": (classes,),
        "task_embedding": (width,),
    }
    towers = (("prompt", config), ("start", config), ("text_prompt", config.get("text")))
    for name, values in towers:
        if values is not None:
            for block, count in enumerate(values["num_virtual_tokens"]):
                if count:
                    found[f"{name}_embeddings.{block}"] = (count, values["token_dim"])
    return found


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


def check_none_left(folder: Path, surplus: Collection[str]) -> None:
    """Refuse tensors that the config does not announce."""
    unannounced = [key for key in surplus if _PROMPT_KEY.fullmatch(key)]
    if unannounced:
        raise VPromptError(
            f"{folder / TENSORS} holds {unannounced}, which {CONFIG} does not announce."
        )
    if surplus:
        raise VPromptError(f"{folder / TENSORS} holds tensors that no artefact has: {[*surplus]}.")


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
