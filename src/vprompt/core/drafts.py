"""Drafts: what is being written under a hidden name, and what dead processes left of such.

A draft's name says which process of which machine writes it, and the process holds a lock on it
as long as it lives, so that another can tell what nobody will finish: that goes, and a folder that
was displaced for good is put back where it was.
"""

import contextlib
import os
import platform
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: the process's number alone tells
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\..*\.vprompt-(draft|old)-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")
_LONGEST = 40  # characters of the target's name in a draft's: four bytes each still fit
_ABANDONED = 86400.0  # seconds after which a draft of another machine is nobody's
_SWEPT: set[tuple[int, Path]] = set()


@dataclass(frozen=True)
class Draft:
    """A hidden file or folder beside its target, and the lock on it."""

    path: Path
    lock: int | None

    def discard(self) -> None:
        """Let go of the lock, and remove what is still there."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        if self.lock is not None:
            os.close(self.lock)


def folder(target: Path, kind: str = "draft") -> Draft:
    """Make an empty hidden folder beside a target."""
    path = _beside(target, kind)
    path.mkdir(mode=0o700)
    return Draft(path, _lock(path))


def file(target: Path) -> Draft:
    """Make an empty hidden file beside a target."""
    path = _beside(target, "draft")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return Draft(path, _lock(path))


def sweep(parent: Path, *, once: bool = False) -> list[Path]:
    """Remove the drafts of dead processes from a folder; return what went.

    What a dead process had displaced is put back, unless something else stands there now. With
    `once`, a folder is looked at for the first time in a process alone.
    """
    key = os.getpid(), Path(parent)
    if once and key in _SWEPT:
        return []
    _SWEPT.add(key)
    try:
        with os.scandir(parent) as listing:
            found = [(Path(each.path), m) for each in listing if (m := _NAME.fullmatch(each.name))]
    except OSError:
        return []
    return [path for path, match in found if _is_dead(path, match) and _end(path, match[1])]


def being_replaced(target: Path) -> bool:
    """Say whether a living process has put a folder aside, and its successor is about to come."""
    with contextlib.suppress(OSError), os.scandir(target.parent) as listing:
        for each in listing:
            match = _NAME.fullmatch(each.name)
            if match and match[1] == "old" and os.path.lexists(Path(each.path) / target.name):
                return True
    return False


def is_inside(path: Path) -> bool:
    """Say whether a file is part of a folder that is itself still a draft."""
    return any(_NAME.fullmatch(name) or name.endswith(".partial") for name in path.parts[:-1])


def _beside(target: Path, kind: str) -> Path:
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.parent / f".{target.name[:_LONGEST]}.vprompt-{kind}-{owner}"


def _machine() -> str:
    import hashlib

    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _lock(path: Path) -> int | None:
    """Lock a draft for as long as this process lives; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _is_free(path: Path) -> bool:
    """Say whether nobody holds the lock."""
    if fcntl is None:
        return True
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    finally:
        os.close(handle)
    return True


def _is_dead(path: Path, match: re.Match[str]) -> bool:
    try:
        if not _is_free(path):
            return False
        old = time.time() - path.lstat().st_mtime > _ABANDONED
        return old or (match[2] == _machine() and not _lives(int(match[3])))
    except OSError:  # gone, or not ours to look at
        return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _end(path: Path, kind: str) -> bool:
    """Put back what was displaced, and remove the rest; say whether it is gone."""
    if kind == "old":
        with contextlib.suppress(OSError):
            for inner in list(path.iterdir()):
                place = path.parent / inner.name
                if not os.path.lexists(place):
                    inner.rename(place)
    Draft(path, None).discard()
    return not os.path.lexists(path)
