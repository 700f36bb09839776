"""Swap: two renames that Python lacks: of two places with each other, and onto nothing alone.

Linux and macOS have both as one step. Elsewhere, and on file systems that refuse, the caller is
told so and has to do with less.
"""

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD of Linux
_NEW_ONLY, _EXCHANGE = 1, 2  # RENAME_NOREPLACE and RENAME_EXCHANGE of Linux
_MAC_EXCHANGE, _MAC_NEW_ONLY = 2, 4  # RENAME_SWAP and RENAME_EXCL of macOS
_LACKING = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM)


def swap(one: Path, other: Path) -> bool:
    """Let two places change what they hold, in one step; False where that cannot be done.

    Raises OSError where one of them is missing or may not be changed.
    """
    return _call(one, other, _EXCHANGE, _MAC_EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename, and raise FileExistsError where something is at the target, even an empty folder."""
    if _call(source, target, _NEW_ONLY, _MAC_NEW_ONLY):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def _call(one: Path, other: Path, linux: int, mac: int) -> bool:
    function = _function()
    if function is None:
        return False
    sys.audit("vprompt.rename", str(one), str(other), linux)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        failed = function(first, second, mac)
    else:
        failed = function(_HERE, first, _HERE, second, linux)
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _LACKING:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@functools.cache
def _function() -> Callable[..., Any] | None:
    if sys.platform not in ("linux", "darwin"):
        return None
    name = "renameat2" if sys.platform == "linux" else "renamex_np"
    try:
        found: Callable[..., Any] = getattr(ctypes.CDLL(None, use_errno=True), name)
        return found
    except (OSError, AttributeError):
        return None
