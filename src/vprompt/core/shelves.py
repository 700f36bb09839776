"""Shelves: what the cache holds, by kind; how it is bounded, listed and emptied.

Everything in it can be computed or fetched again, so that what was used longest ago may go.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vprompt.core import drafts
from vprompt.core.errors import VPromptError
from vprompt.core.files import cache_folder, read_json

KINDS = ("images", "evidence", "prefix", "checkpoints", "hub")
LIMIT = "VPROMPT_CACHE_LIMIT"  # GiB of all kinds together
_USUAL_LIMIT = 50.0
PROMISE = ".promise"  # beside a checkpoint: where the result will be
_DAY = 86400.0
_FRESH = 3600.0  # seconds within which what was used is not taken away: a run may be at it


@dataclass(frozen=True)
class Entry:
    """One file or folder of the cache: its bytes, and when it was last used."""

    path: Path
    kind: str
    size: int
    used: float


def entries(kinds: Iterable[str] = KINDS) -> list[Entry]:
    """Return everything that the cache holds of these kinds."""
    found = []
    for kind in kinds:
        if kind not in KINDS:
            raise VPromptError(f"The cache has no {kind!r}. It has: {', '.join(KINDS)}.")
        for path in _listed(cache_folder() / kind):
            with contextlib.suppress(OSError):
                size, used = _measured(path)
                found.append(Entry(path, kind, size, used))
    return found


def clean(kinds: Iterable[str] = KINDS, *, older_than: float = 0.0) -> list[Entry]:
    """Remove what was not used for so many days; return what went."""
    sweep(deep=True)
    now = time.time()
    gone = [each for each in entries(kinds) if now - each.used >= older_than * _DAY]
    return [each for each in gone if _remove(each.path)]


def sweep(*, deep: bool = False) -> None:
    """Remove what dead processes left in the cache; `deep` looks into every entry as well."""
    root = cache_folder()
    places = [root, *(root / kind for kind in KINDS)]
    if deep:
        with contextlib.suppress(OSError):
            places += [Path(each) for each, _, _ in os.walk(root)]
    for place in places:
        drafts.sweep(place)
    for path in (root / "checkpoints").glob(f"*{PROMISE}"):
        _keep_promise(path)
    forget_finished(older_than=1.0)


def hold_to_limit() -> list[Entry]:
    """Remove what was used longest ago until the cache is within its bound; return what went."""
    held = entries()
    left, most = sum(each.size for each in held), limit() * 2**30
    gone = []
    now = time.time()
    for each in sorted(held, key=lambda each: each.used):
        if left <= most or now - each.used < _FRESH:
            break
        if _remove(each.path):
            left -= each.size
            gone.append(each)
    return gone


def limit() -> float:
    """Return the bound of the cache in GiB: `$VPROMPT_CACHE_LIMIT`, or the usual one."""
    text = os.environ.get(LIMIT, "")
    try:
        found = float(text) if text else _USUAL_LIMIT
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise VPromptError(f"{LIMIT} is a number of GiB, such as 20, but got {text!r}.")
    return found


def forget_finished(older_than: float = 0.0) -> None:
    """Remove the states of finished trainings that were left for equal ones to find.

    `older_than` is a number of days.
    """
    for path in (cache_folder() / "checkpoints").glob(f"*{PROMISE}"):
        with contextlib.suppress(OSError, VPromptError, TypeError, KeyError):
            old = time.time() - path.stat().st_mtime >= older_than * _DAY
            if old and read_json(path)["result"] is None:
                _fulfil(path)


def _keep_promise(path: Path) -> None:
    """Remove the state of a training whose result is there and newer than the promise of it."""
    with contextlib.suppress(OSError, VPromptError, TypeError, KeyError, ValueError):
        result = Path(read_json(path)["result"])
        if max(each.stat().st_mtime for each in result.iterdir()) >= path.stat().st_mtime:
            _fulfil(path)


def _fulfil(promise: Path) -> None:
    promise.with_suffix(".safetensors").unlink(missing_ok=True)
    promise.unlink(missing_ok=True)


def _listed(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as listing:
            return [Path(each.path) for each in listing if each.name[0] != "."]
    except OSError:
        return []


def _measured(path: Path) -> tuple[int, float]:
    """Return the bytes of an entry, and the time at which anything in it was last touched."""
    if not path.is_dir():
        stat = path.stat()
        return stat.st_size, stat.st_mtime
    stats = [Path(root, name).stat() for root, _, names in os.walk(path) for name in names]
    if not stats:
        return 0, path.stat().st_mtime
    return sum(each.st_size for each in stats), max(each.st_mtime for each in stats)


def _remove(path: Path) -> bool:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return not path.exists()
