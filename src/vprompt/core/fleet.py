"""Fleet: pieces of work that take turns in one process, and have asked together what they can.

Every member runs in a thread of its own, but never two at once: a member runs until it asks for
something, and when all have asked or are done, the questions that fit together get one answer. So
the code of a member is the same in company as alone.

Answers may be worked out in several lanes: each is a thread with its share of the cores, and has a
part of the members.
"""

import contextvars
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vprompt.core.errors import VPromptError
from vprompt.core.threads import Shares

R = TypeVar("R")

AUTO, OFF = "auto", "off"  # sizes of a fleet, beside numbers

# The order in which questions are answered. Members that are late catch up with a look or a step of
# their own, and then ask with the others: nobody steps before all have joined, and a rung is
# reached when nobody has another question.
LOOK, JOIN, FORWARD, BACKWARD, RUNG = range(5)


class Left(BaseException):
    """Raised in members that leave before they are done, because the fleet ends."""


@dataclass(frozen=True, eq=False)
class _Question:
    order: int
    key: Hashable
    asked: Any
    answer: Callable[[Sequence[Any]], Sequence[Any]]
    divides: bool


_here = threading.local()


def checked(asked: str | int) -> str | int:
    """Return the size of a fleet that a person asked for; raises VPromptError if it is none."""
    if asked in (AUTO, OFF) or (str(asked).isdecimal() and int(asked) >= 1):
        return asked
    raise VPromptError(f"--fleet is `auto`, `off` or a number from 1, but got {asked!r}.")


def member() -> "Member[Any] | None":
    """Return the member that this thread runs, or None where there is no fleet."""
    found: Member[Any] | None = getattr(_here, "member", None)
    return found


def now() -> float:
    """Return the seconds of a clock that counts, for a member, its own time and share alone."""
    mine = member()
    return time.perf_counter() if mine is None else mine.now()


class Member(Generic[R]):
    """One piece of work, and what it waits for.

    `extract` does its forward passes where they may be shared, `stepping` says that they are
    followed by `models.company.backward`, and `joined` that one of them was. `common` is one for
    all members, and `moves` says that this one's tokens change places.
    """

    def __init__(
        self, work: Callable[[], R], back: threading.Semaphore, common: dict[Any, Any]
    ) -> None:
        self.work, self.back, self.turn = work, back, threading.Semaphore(0)
        self.common, self.moves = common, False
        self.question: _Question | None = None
        self.reply: Any = None
        self.error: BaseException | None = None
        self.result: R | None = None
        self.done, self.ends = False, False
        self.extract: Callable[..., Any] | None = None
        self.stepping, self.joined = False, False
        self.lane = 0  # of its last forward pass, which its backward pass has to share
        self.asked, self.spent, self.since = 0, 0.0, time.perf_counter()
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def ask(
        self,
        order: int,
        key: Hashable,
        asked: Any,
        answer: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        divides: bool = False,
    ) -> Any:
        """Wait for the answer to a question.

        `answer` makes a list of answers of a list of questions of one order and key; whoever asked
        first lends it. What it raises is raised here. With `divides`, lanes may answer a part of
        the questions each, at the same time.
        """
        if self.ends:
            raise Left
        self.question = _Question(order, key, asked, answer, divides)
        self.asked += 1
        self._hand_back()
        if self.ends:
            raise Left
        reply, self.reply = self.reply, None
        if isinstance(reply, _Raised):
            raise reply.error
        return reply

    def now(self) -> float:
        """Return the seconds that this member has taken."""
        return self.spent + time.perf_counter() - self.since

    def resume(self) -> None:
        """Let the member run until it asks or is done."""
        self.question, self.since = None, time.perf_counter()
        self.turn.release()
        self.back.acquire()
        if self.error is not None and not isinstance(self.error, Exception):
            raise self.error  # an interrupt, which ends the others as well

    def end(self) -> None:
        """Let the member leave, and wait until it has."""
        self.ends = True
        self.turn.release()
        self.thread.join()

    def _hand_back(self) -> None:
        self.spent += time.perf_counter() - self.since
        self.back.release()
        self.turn.acquire()

    def _run(self) -> None:
        _here.member = self
        self.turn.acquire()
        try:
            if not self.ends:
                self.result = self.work()
        except BaseException as error:  # it is raised, or returned, where the fleet was started
            self.error = error
        self.done = True
        self.spent += time.perf_counter() - self.since
        self.back.release()


@dataclass(frozen=True, eq=False)
class _Raised:
    error: Exception


class _Lanes:
    """Threads that answer a part of the questions each, started when there is work for them."""

    def __init__(self, most: int) -> None:
        import torch

        self.count = min(most, torch.get_num_threads())
        self._pool: ThreadPoolExecutor | None = None

    def answer(self, group: Sequence[Member[Any]]) -> None:
        """Answer questions that fit together."""
        if self.count < 2 or not _asks(group[0]).divides:
            _answer_part(group, 1)
            return
        # Also a single part is a lane's: on more cores the last bits would be others.
        parts = self._parts(group)
        if self._pool is None:
            self._pool = self._start()
        for _ in self._pool.map(_answer_part, parts, [len(parts)] * len(parts)):
            pass  # what failed is in the replies

    def close(self) -> None:
        """End the threads, after what they do now."""
        if self._pool is not None:
            self._pool.shutdown()

    def _parts(self, group: Sequence[Member[Any]]) -> list[Sequence[Member[Any]]]:
        """Return who goes together; whoever shared a forward pass shares the backward one."""
        parts: dict[int, list[Member[Any]]] = {}
        for row, each in enumerate(group):
            if _asks(each).order != BACKWARD:
                each.lane = row * self.count // len(group)
            parts.setdefault(each.lane, []).append(each)
        return list(parts.values())

    def _start(self) -> ThreadPoolExecutor:
        shares = Shares(self.count)
        pool = ThreadPoolExecutor(self.count, "vprompt-lane", initializer=shares.take)
        for _ in range(self.count):
            pool.submit(int)  # a thread each, since none is idle before all are there
        shares.settle()
        return pool


def run(works: Sequence[Callable[[], R]], *, width: int | None = None) -> list[R | Exception]:
    """Do all pieces of work, and return what came of each: a result, or the error that ended it.

    At most `width` of them are in one forward pass and the backward pass after it. A member that
    fails leaves; the others go on as they would have. Inside a member of another fleet the pieces
    are done one after the other.
    """
    if member() is not None or len(works) < 2:
        return [_attempt(work) for work in works]
    back = threading.Semaphore(0)
    common: dict[Any, Any] = {}
    members = [Member(work, back, common) for work in works]
    live: list[Member[R]] = []
    lanes = _Lanes(len(works))
    try:
        for each in members:
            each.thread.start()
            live.append(each)
        for each in members:
            each.resume()
        while live := [each for each in live if not each.done]:
            for each in _answer(live, width or len(live), lanes):
                each.resume()
    finally:
        for each in live:
            if not each.done:
                each.end()
        lanes.close()
    return [each.result if each.error is None else each.error for each in members]  # type: ignore[misc]


def _attempt(work: Callable[[], R]) -> R | Exception:
    try:
        return work()
    except Exception as error:
        return error


def _answer(live: Sequence[Member[Any]], width: int, lanes: _Lanes) -> list[Member[Any]]:
    """Answer what comes first, and return those that have their answer."""
    asking = {order: [m for m in live if _asks(m).order == order] for order in range(RUNG + 1)}
    order = next(order for order, some in asking.items() if some)
    chosen = sorted(asking[order], key=lambda m: m.asked)
    if order == FORWARD and len(asking[BACKWARD]) >= width:
        chosen = asking[BACKWARD]
    elif order == FORWARD:
        chosen = chosen[: width - len(asking[BACKWARD])]
    elif order == LOOK:
        chosen = chosen[:width]
    groups: dict[Hashable, list[Member[Any]]] = {}
    for each in sorted(chosen, key=live.index):
        groups.setdefault(_asks(each).key, []).append(each)
    for group in groups.values():
        lanes.answer(group)
    return chosen


def _answer_part(group: Sequence[Member[Any]], lanes: int) -> None:
    """Answer questions together; one that fails fails for whoever asked it alone.

    So many `lanes` do the same at this moment, so a second of each counts as a part of one.
    """
    began = time.perf_counter()
    try:
        replies = _asks(group[0]).answer([_asks(each).asked for each in group])
    except Exception as error:
        replies = [_Raised(error)] * len(group)
        if len(group) > 1 and _asks(group[0]).order < BACKWARD:  # else its graph is gone
            for each in group:
                _answer_part([each], lanes)
            return
    share = (time.perf_counter() - began) / len(group) / lanes
    for each, reply in zip(group, replies, strict=True):
        each.reply = reply
        each.spent += share


def _asks(member: Member[Any]) -> _Question:
    assert member.question is not None
    return member.question
