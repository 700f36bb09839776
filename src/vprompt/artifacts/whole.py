"""Whole: an artefact is as it was written, or refused; and readers see one of two, never both.

The digests stand in the config: of every other file, and of the config itself. They tell damage,
not forgery: who changes a file on purpose writes a digest that fits.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vprompt.core import drafts, seals
from vprompt.core.errors import VPromptError

DIGESTS = "digests"
_ITSELF = "adapter_config.json"
_ATTEMPTS = 500  # of reading what others replace meanwhile
_PAUSE = 0.002  # seconds
Read = TypeVar("Read")


def with_digests(config: Mapping[str, Any], contents: Mapping[str, bytes | str]) -> dict[str, Any]:
    """Return a config with the digests of the other files, given as bytes or as a digest."""
    # As it will be read again: JSON has no tuples, and no keys but texts.
    plain = json.loads(json.dumps({k: v for k, v in config.items() if k != DIGESTS}))
    found = {
        name: each if isinstance(each, str) else seals.of_bytes(each)
        for name, each in contents.items()
    }
    return {**plain, DIGESTS: {**found, _ITSELF: seals.of_bytes(seals.canonical(plain))}}


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise VPromptError where the config is not the one written; without digests, pass."""
    digests = config.get(DIGESTS)
    if digests is None:
        # The name of the key may be what is damaged; what stands under it tells.
        if any(isinstance(value, dict) and _ITSELF in value for value in config.values()):
            raise _changed(folder, _ITSELF)
        return
    if not isinstance(digests, dict) or not all(isinstance(v, str) for v in digests.values()):
        raise VPromptError(f"{folder / _ITSELF}: {DIGESTS} are not texts by the names of files.")
    plain = {key: value for key, value in config.items() if key != DIGESTS}
    if digests.get(_ITSELF) != seals.of_bytes(seals.canonical(plain)):
        raise _changed(folder, _ITSELF)


def check_files(folder: Path, config: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise VPromptError where a file is missing, added or other than when it was written."""
    digests = config.get(DIGESTS)
    if digests is None:
        return
    for name in names:
        path, known = folder / name, digests.get(name)
        if path.is_file() != (known is not None):
            state = "was added later" if known is None else "is missing"
            raise VPromptError(f"{folder}: {name} {state}.{_remedy(folder)}")
        if known is not None and seals.of_file(path) != known:
            raise _changed(folder, name)


def steadily(folder: Path, read: Callable[[], Read]) -> Read:
    """Return what `read` finds in a folder, all of it of one and the same folder.

    Where another process replaces the folder meanwhile, it is read again.
    """
    drafts.sweep(folder.parent, once=True)
    for _ in range(_ATTEMPTS):
        with _held(folder) as before:
            try:
                found = read()
                if _identity(folder) == before:
                    return found
            except (VPromptError, OSError) as error:
                if _identity(folder) == before and not drafts.being_replaced(folder):
                    raise _explained(folder, error) from None
        time.sleep(_PAUSE)
    raise VPromptError(f"{folder} is replaced all the time by another process. Read it later.")


def _explained(folder: Path, error: Exception) -> VPromptError:
    if isinstance(error, VPromptError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return VPromptError(f"{folder} cannot be read: {reason}.")


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[tuple[int, ...] | None]:
    """Yield which folder it is, held open: its number is no other's as long as it is."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # there is none, or a system that opens no folders
        yield _identity(folder)
        return
    try:
        yield _of_stat(os.fstat(handle))
    finally:
        os.close(handle)


def _identity(folder: Path) -> tuple[int, ...] | None:
    try:
        return _of_stat(os.stat(folder))
    except OSError:
        return None


def _of_stat(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_mtime_ns)


def _changed(folder: Path, name: str) -> VPromptError:
    return VPromptError(
        f"{folder}: {name} is not what was written: its digest differs, so it is damaged or was "
        f"edited.{_remedy(folder)}"
    )


def _remedy(folder: Path) -> str:
    return (
        f" Fetch or learn it again; if you edited it yourself, `vprompt pool seal {folder}` "
        "records it as it is now."
    )
