"""Checkpoints: weight files of other programs as plain tensors; no code of theirs is ever run.

Training programs wrap what they save: in a dictionary (`state_dict`, `teacher`), and in prefixes of
every name (`module.`, `base_encoder.`). Both are taken off where what is left fits the model.
"""

import argparse
import contextlib
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vprompt.backbones._filling import listed
from vprompt.core.errors import VPromptError

# Where a file holds several sets of weights that fit, the first of these is meant.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model_state"),
    *("model", "network", "net", "module", "teacher", "student", "encoder"),
)
PREFIXES = (
    *("_orig_mod", "module", "model", "teacher", "student", "backbone", "base_encoder"),
    "encoder",
)
_UNUSUAL = 1000  # rank of what stands in neither list
_DEEPEST = 3  # dictionaries within one another
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".npz")
_STACKED = "Transformer/encoderblock/"
_POINTER = b"version https://git-lfs"


def find_in(folder: Path) -> Path:
    """Return the weight file of a folder: the usual name, or the only file that can be one."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    for ending in _ENDINGS:
        found = sorted(path for path in folder.glob(f"*{ending}") if path.is_file())
        if len(found) == 1:
            return found[0]
        if found:
            raise VPromptError(
                f"{folder} holds {listed([path.name for path in found])}, and which of them are "
                f"the weights is not clear. Name one: `timm_vit(model=..., checkpoint='...')`."
            )
    raise VPromptError(f"{folder} holds no weight file, such as {_WEIGHTS[0]}.")


def is_archive_of_arrays(path: Path) -> bool:
    """Say whether a file is NumPy's `.npz`, as the original ViT was released."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def read(path: Path, *, arrays: bool = False) -> Any:
    """Return what a safetensors file or a PyTorch file holds, unpickling no code.

    `arrays` lets NumPy's numbers through, which some programs save in place of tensors.
    """
    if not path.stat().st_size:
        raise VPromptError(f"{path} is empty. Fetch it again.")
    try:
        if _is_safetensors(path):
            return load_file(path)
        with _harmless(arrays), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on pickles of other programs
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise VPromptError(f"{path} is truncated or damaged ({error}). Fetch it again.") from None
    except Exception as error:  # torch raises a dozen kinds of errors here
        code = re.search(r"GLOBAL (\S+)", str(error))
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        # Torch would have one run what is in the file, or names a byte that it stumbled over.
        if "weights_only" in first or first.isdecimal():
            first = "it is damaged, or no file of PyTorch's"
        reason = f"it asks for the code {code[1]}" if code else first[:200]
        raise VPromptError(
            f"{path} is not read: {reason}. Read are safetensors, PyTorch's state dicts "
            "without code in them, and the .npz files of the original ViT. Save the tensors alone: "
            "`torch.save(model.state_dict(), 'weights.pth')`."
        ) from None


def unwrap(held: Any, names: Collection[str], source: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors that fit best, and what was taken off, as a sentence or nothing.

    `names` are the model's own. Where less than half of them are found under any wrapper, the
    outermost tensors come back, for the model library may know their spelling.
    """
    sets = dict(_sets(held)) if isinstance(held, Mapping) else {}
    if not sets:
        raise VPromptError(f"{source} holds no weights that have names.")
    options = [
        (-count, _rank(trail, WRAPPERS), _rank(_pieces(prefix), PREFIXES), trail, prefix)
        for trail, tensors in sets.items()
        for prefix, count in _prefixes(tensors, names).items()
    ]
    best, *others = sorted(options) or [(0, 0, 0, (), "")]
    usual = best[2] < _UNUSUAL
    if -best[0] < len(names) * (0.5 if usual else 1):
        trail = min(sets, key=lambda each: (_rank(each, WRAPPERS), each))
        return _named(sets, trail, _shared_prefix(sets[trail]), source)
    if others and others[0][:3] == best[:3]:
        both = [".".join((*trail, prefix)) for *_, trail, prefix in (best, others[0])]
        raise VPromptError(
            f"{source} holds several sets of weights that fit alike: {both[0]} and {both[1]}. Save "
            "the one that you mean in a file of its own."
        )
    return _named(sets, best[3], best[4], source)


@torch.no_grad()
def fill_from_arrays(vit: Any, path: Path, name: str) -> None:
    """Fill a timm model from an `.npz` of the original ViT, every parameter of it or none."""
    names, depth = _contents(path)
    if not depth or not hasattr(vit, "load_pretrained"):
        raise VPromptError(
            f"{path} holds {listed(names) or 'nothing'}: these are not the weights of an original "
            f"ViT, or {name!r} is none. Convert them to timm's names, as safetensors."
        )
    if depth != len(vit.blocks):
        raise VPromptError(
            f"{path} holds {depth} blocks, and {name!r} has {len(vit.blocks)}. Name the "
            "architecture that the weights are of."
        )
    for tensor in _numbers(vit).values():
        tensor.fill_(torch.nan)  # what is still not a number afterwards was not in the file
    try:
        vit.load_pretrained(str(path))
    except Exception as error:
        reason = str(error).strip().strip("'\"").splitlines()[0] if str(error).strip() else "?"
        raise VPromptError(f"{path} does not fill {name!r}: {reason[:200]}.") from None
    empty = [key for key, tensor in _numbers(vit).items() if bool(tensor.isnan().any())]
    if empty:
        raise VPromptError(
            f"{path} fills all but {len(empty)} tensors of {name!r}. It lacks {listed(empty)}."
        )


def _numbers(vit: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in vit.state_dict().items() if v.is_floating_point()}


def _contents(path: Path) -> tuple[list[str], int]:
    """Return the names of the arrays, and of how many blocks they are; 0 for another model."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
            stacked = [arrays[key].shape[:1] for key in names if _STACKED in key][:1]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise VPromptError(f"{path} is truncated or damaged ({error}). Fetch it again.") from None
    numbers = (int(n) + 1 for key in names for n in re.findall(r"encoderblock_(\d+)/", key))
    return names, max([*(size for shape in stacked for size in shape), *numbers], default=0)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise VPromptError(
            f"{path} is a pointer of Git LFS, not the weights. Fetch them: `git lfs pull`."
        )
    size = int.from_bytes(start[:8], "little")
    return path.suffix == ".safetensors" or (
        start[8:9] == b"{" and 0 < size <= path.stat().st_size - 8
    )


@contextlib.contextmanager
def _harmless(arrays: bool = False) -> Iterator[None]:
    """Let torch read the settings that training programs put beside their weights."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch 2.4
        yield
        return
    with allow([argparse.Namespace, *(_of_arrays() if arrays else ())]):
        yield


def _of_arrays() -> list[Any]:
    """Return what builds an array of numbers, under the names of both NumPy 1 and 2."""
    build: Any = np.zeros(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8")}
    names = [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
    return [*((build, name) for name in names), np.ndarray, np.dtype, *kinds]


def _sets(
    held: Mapping[Any, Any], trail: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dictionary that holds tensors, with the keys that lead to it."""
    tensors = {key: v for key, v in held.items() if isinstance(key, str) and isinstance(v, Tensor)}
    if tensors:
        yield trail, tensors
    for key, value in held.items():
        if isinstance(value, Mapping) and len(trail) < _DEEPEST and isinstance(key, str):
            yield from _sets(value, (*trail, key))


def _prefixes(tensors: Mapping[str, Tensor], names: Collection[str]) -> Counter[str]:
    """Count, for everything that stands before a name, how many of the names it stands before."""
    wanted, found = set(names), Counter[str]()
    for key in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        found.update(key[:start] for start in starts if key[start:] in wanted)
    return found


def _pieces(prefix: str) -> tuple[str, ...]:
    return tuple(prefix.split(".")[:-1])


def _rank(pieces: tuple[str, ...], usual: tuple[str, ...]) -> int:
    """Return how far down the list the pieces stand, added up; 0 where there are none."""
    return sum(usual.index(piece) + 1 if piece in usual else _UNUSUAL for piece in pieces)


def _shared_prefix(tensors: Mapping[str, Tensor]) -> str:
    """Return what of the usual prefixes stands before all names."""
    prefix = ""
    while True:
        piece = next(iter(tensors))[len(prefix) :].partition(".")[0]
        if piece not in PREFIXES or not all(k.startswith(f"{prefix}{piece}.") for k in tensors):
            return prefix
        prefix += f"{piece}."


def _named(
    sets: Mapping[tuple[str, ...], dict[str, Tensor]],
    trail: tuple[str, ...],
    prefix: str,
    source: str,
) -> tuple[dict[str, Tensor], str]:
    tensors = sets[trail]
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    parts = [f"read `{'.'.join(trail)}`"] if trail else []
    parts += [f"took `{prefix}` off {len(state)} names"] if prefix else []
    unread = sum(map(len, sets.values())) - len(state)
    parts += [f"left {unread} other tensors aside"] if parts and unread else []
    return state, f"{source}: {', '.join(parts)}" if parts else ""
