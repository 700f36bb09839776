"""Seals: digests that travel with what they are of, and files that are read only where whole."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vprompt.core.errors import CacheWarning

_KEY = "digest"
_CHUNK = 2**22  # bytes
_LARGEST_HEADER = 2**27  # bytes
_TOLD: set[Path] = set()  # the caches whose damage a person was told of in this process


def canonical(value: Any) -> bytes:
    """Return JSON as the bytes that a digest is of: the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def of_bytes(*parts: bytes | memoryview) -> str:
    """Return the digest of parts, one after the other."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return f"sha256:{total.hexdigest()}"


def of_file(path: Path) -> str:
    """Return the digest of a file, which is read in pieces."""
    total = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(_CHUNK):
            total.update(part)
    return f"sha256:{total.hexdigest()}"


class UnsealedError(ValueError):
    """A file from before files had digests: it is not damaged, and not believed either."""


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with their digest among them."""
    plain = {key: value for key, value in values.items() if key != _KEY}
    return {**plain, _KEY: of_bytes(canonical(plain))}


def is_whole(values: Any) -> bool:
    """Say whether JSON values are those that were sealed."""
    if not isinstance(values, dict) or not isinstance(values.get(_KEY), str):
        return False
    return bool(seal(values)[_KEY] == values[_KEY])


def seal_tensors(data: bytes) -> bytes:
    """Return a safetensors file with a digest of names, types, shapes, texts and values in it."""
    header, body = _parts(data)
    texts = header.setdefault("__metadata__", {})
    texts.pop(_KEY, None)
    texts[_KEY] = of_bytes(canonical(header), body)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join((len(head).to_bytes(8, "little"), head, body))


def whole_tensors(data: bytes) -> dict[str, str]:
    """Return the texts of a sealed safetensors file; raises ValueError where it is not whole."""
    header, body = _parts(data)
    texts = header.get("__metadata__")
    if not isinstance(texts, dict) or not isinstance(known := texts.pop(_KEY, None), str):
        tensors = [each for key, each in header.items() if key != "__metadata__"]
        sound = all(isinstance(each, dict) and "dtype" in each for each in tensors)
        raise (UnsealedError if sound else ValueError)("it has no digest")
    if of_bytes(canonical(header), body) != known:
        raise ValueError("its digest is another")
    return texts


def tell_of_damage(cache: Path, what: Path) -> None:
    """Say, once in a process, that something in the cache is not as it was written."""
    if cache not in _TOLD:
        _TOLD.add(cache)
        name = what.relative_to(cache) if what.is_relative_to(cache) else what
        warnings.warn(
            f"The cache {cache} holds damaged files, first {name}. What they held is computed "
            "again; where that recurs, look at the disk.",
            CacheWarning,
            stacklevel=3,
        )


def _parts(data: bytes) -> tuple[dict[str, Any], memoryview]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_LARGEST_HEADER, len(data) - 8):
        raise ValueError("it is cut short")
    try:
        header = json.loads(data[8 : 8 + size])
    except RecursionError as error:
        raise ValueError("its header is no JSON") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, memoryview(data)[8 + size :]
