"""Children: forked processes that are killed, signalled or refused by the disk, and what is left.

A fork shares what its parent has imported, so that a command of a second is not ten of imports.
"""

import contextlib
import errno
import fcntl
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

EVENTS = ("os.rename", "vprompt.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "os.utime")
_MAKING = ("open", "os.mkdir", "os.rename", "vprompt.rename")  # what a full disk may refuse
_LONGEST = 900.0  # seconds after which a child hangs


@dataclass(frozen=True)
class Ending:
    """How a child ended: its exit code, negative for a signal, what it said, how much it changed.

    `changes` counts the changes of files that the child told of, `seconds` is its life.
    """

    code: int
    said: str
    changes: int
    seconds: float

    @property
    def crashed(self) -> bool:
        """Whether a person saw a traceback, or nothing for too long."""
        return "Traceback (most recent" in self.said or self.seconds >= _LONGEST


@dataclass(frozen=True)
class Fault:
    """What befalls a child: a signal at a time or at the n-th change of a file, or a full disk.

    `full_at` is the change from which on the disk refuses, `once` whether it refuses that one
    alone, and `largest` how many bytes a file may have.
    """

    signal: int = 0
    seconds: float | None = None
    change: int | None = None
    full_at: int | None = None
    once: bool = False
    largest: int | None = None


NONE = Fault()


def in_child(work: Callable[[], None], fault: Fault = NONE, *, below: Path | None = None) -> Ending:
    """Run in a forked process to which the fault happens.

    With `below`, only changes of files in that folder count.
    """
    reader, writer = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # room for all that is said
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2**20)
    began = time.perf_counter()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _live(work, fault, writer, below)
    os.close(writer)
    status, sent = None, fault.seconds is None
    try:
        while status is None:
            spent = time.perf_counter() - began
            if not sent and spent >= (fault.seconds or 0.0):
                os.kill(child, fault.signal)
                sent = True
            if spent > _LONGEST:
                os.kill(child, signal.SIGKILL)
            ended, found = os.waitpid(child, os.WNOHANG)
            status = found if ended else None
            if status is None:
                time.sleep(0.002)
    finally:
        with os.fdopen(reader, errors="replace") as answers:
            text = answers.read()
    said, _, count = text.rpartition("\x00")
    spent = time.perf_counter() - began
    if not count.isdecimal():
        said, count = text, "0"
    return Ending(os.waitstatus_to_exitcode(status), said, int(count), spent)


def _live(work: Callable[[], None], fault: Fault, writer: int, below: Path | None) -> None:
    """Be the child: what is said goes into the pipe, and last the number of changes."""
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    # Whoever runs this may have put something of its own in their place.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    count, code, counting = 0, 1, True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if not counting or event not in EVENTS or (event == "open" and not _writes(arguments)):
            return
        if below is not None and not _is_below(arguments, below):
            return
        if count == fault.change:
            os.kill(os.getpid(), fault.signal)
        refused = fault.full_at is not None and count >= fault.full_at
        refused &= event in _MAKING and not (fault.once and count != fault.full_at)
        count += 1
        if refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    try:
        # The parent's loop may handle signals in its own way; a child is as one that just began.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(
                each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
            )
        if fault.largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest, resource.RLIM_INFINITY))
        sys.addaudithook(watch)
        try:
            work()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
    finally:
        counting = False
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(writer, f"\x00{count}".encode())
        os._exit(code)


def _writes(arguments: tuple[object, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(sign in mode for sign in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _is_below(arguments: tuple[object, ...], folder: Path) -> bool:
    return any(str(each).startswith(str(folder)) for each in arguments[:2])


def drawn(chance: random.Random, seconds: float, changes: int) -> Fault:
    """Return a kill or another signal at a random time, or at a random change of a file."""
    number = chance.choice((signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
    if chance.random() < 0.5:
        return Fault(number, seconds=chance.uniform(0.0, seconds))
    return Fault(number, change=chance.randrange(max(changes, 1)))


def full(chance: random.Random, changes: int, sizes: tuple[int, ...]) -> Fault:
    """Return a disk that is full from a change on, or at one alone, or that takes short files."""
    kind = chance.choice(("from", "once", "short"))
    if kind == "short":
        return Fault(largest=chance.choice(sizes))
    return Fault(full_at=chance.randrange(max(changes, 1)), once=kind == "once")


@contextlib.contextmanager
def cache(folder: Path) -> Iterator[None]:
    """Let the cache be in a folder for a while."""
    before = os.environ.get("VPROMPT_CACHE")
    os.environ["VPROMPT_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["VPROMPT_CACHE"]
        else:
            os.environ["VPROMPT_CACHE"] = before
