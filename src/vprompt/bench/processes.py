"""Processes: calls beside one another on this machine, each in a process that may die alone."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any

from vprompt.bench.calls import RETRIES, Answers, Call, Lost, available_cpus, silent, use_threads
from vprompt.core.errors import VPromptError
from vprompt.core.threads import wait_quietly

_PATIENCE = 5.0  # seconds that a process is given to end


@dataclass(frozen=True)
class Processes:
    """`workers` processes of this machine, each with its part of the processors.

    With `num_gpus`, such as 0.25, they are dealt over the GPUs, four to each. A call whose process
    dies is tried again in a new one.
    """

    workers: int | None = None
    num_cpus: int | None = None
    num_gpus: float | None = None
    retries: int = RETRIES
    parallel = True

    def run(self, calls: Sequence[Call], started: Callable[[str], None] = silent) -> Answers:
        """Yield answers as they come."""
        places = gpu_places(self.num_gpus)
        room = len(places) or max(1, available_cpus() // (self.num_cpus or 1))
        count = self.workers or room
        if places and count > room:
            raise VPromptError(
                f"The GPUs of this machine have room for {room} workers, but got --workers "
                f"{count}. Give each a smaller --num-gpus."
            )
        threads = self.num_cpus or max(1, available_cpus() // count)
        pool = _Pool(count, threads, places)
        todo, answers, tries = list(calls), dict[str, Any](), Counter[str]()
        try:
            while todo or pool.busy:
                for call in [call for call in todo if answers.keys() >= set(call.needs)]:
                    lost = [need for need in call.needs if isinstance(answers[need], Lost)]
                    if lost:
                        todo.remove(call)
                        answers[call.key] = Lost(f"it needs {lost[0]}, which was lost")
                        yield call.key, answers[call.key]
                    elif len(pool.busy) < count:
                        todo.remove(call)
                        started(call.key)
                        pool.begin(call, answers)
                for call, answer in pool.wait():
                    tries[call.key] += 1
                    if isinstance(answer, Lost) and tries[call.key] <= self.retries:
                        todo.insert(0, call)
                        continue
                    answers[call.key] = answer
                    yield call.key, answer
        finally:
            pool.stop()


class _Pool:
    """Processes that are idle or busy; one is made when none is idle."""

    def __init__(self, count: int, threads: int, gpus: Sequence[str]) -> None:
        self.threads, self.gpus, self.numbers = threads, gpus, list(range(count))
        self.idle: list[_Worker] = []
        self.busy: dict[Any, tuple[_Worker, Call]] = {}

    def begin(self, call: Call, answers: Mapping[str, Any]) -> None:
        """Hand a call and the answers that it needs to a process."""
        if not self.idle:
            number = self.numbers.pop(0)
            gpu = self.gpus[number] if self.gpus else None
            self.idle.append(_Worker(number, self.threads, gpu))
        worker = self.idle.pop()
        self.busy[worker.pipe] = worker, call
        with contextlib.suppress(BrokenPipeError):  # a dead one is noticed in `wait`
            worker.pipe.send((call.run, (*call.arguments, *(answers[n] for n in call.needs))))

    def wait(self) -> list[tuple[Call, Any]]:
        """Wait for answers; where a process died, it is `Lost`."""
        found: list[tuple[Call, Any]] = []
        for pipe in connection.wait(list(self.busy)) if self.busy else ():
            worker, call = self.busy.pop(pipe)
            try:
                found.append((call, worker.pipe.recv()))
                self.idle.append(worker)
            except (EOFError, OSError):
                self.numbers.append(worker.number)
                found.append((call, Lost(f"its process ended {worker.stop()}")))
        return found

    def stop(self) -> None:
        """End all processes of this pool."""
        for worker in [*self.idle, *(worker for worker, _ in self.busy.values())]:
            worker.stop()


class _Worker:
    """A process that answers calls until its pipe is closed."""

    def __init__(self, number: int, threads: int, gpu: str | None) -> None:
        self.number = number
        self.pipe, theirs = connection.Pipe()
        # It inherits how its threads wait, which it could not say before it loads torch.
        wait_quietly()
        # A fork of a process that has used torch's threads may hang.
        self.process = get_context("spawn").Process(
            target=_serve, args=(theirs, threads, gpu), daemon=True
        )
        self.process.start()
        theirs.close()  # else the end of the process would not be seen here

    def stop(self) -> str:
        """End the process, this one alone, and say how it ended."""
        self.pipe.close()
        self.process.join(0.1)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        return f"by signal {-code}" if code < 0 else f"with code {code}"


def _serve(pipe: Any, threads: int, gpu: str | None) -> None:
    """Answer calls; what a call raises ends the process, and whoever asked sees that it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    use_threads(threads)
    while True:
        try:
            run, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(run(*arguments))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def gpu_places(num_gpus: float | None) -> list[str]:
    """Return which GPU each worker may use, in turn, as many as there is room for.

    Every call takes `num_gpus` of one, by default a whole one. Empty where 0 are asked for, and
    where the machine has none and none were asked for.
    """
    if num_gpus == 0:
        return []
    import torch

    share = 1.0 if num_gpus is None else num_gpus
    if share > 1:
        raise VPromptError(f"A run uses one GPU or a part of one, but got --num-gpus {share:g}.")
    found = [str(index) for index in range(torch.cuda.device_count())]
    if not found and num_gpus is not None:
        raise VPromptError("This machine has no CUDA device. Leave --num-gpus out.")
    if found and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        found = visible.split(",")
    return found * int(1 / share + 1e-9)
