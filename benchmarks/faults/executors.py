"""Executors: workers that die in the middle of a call, of processes on this machine and of Ray."""

import importlib.util
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

from benchmarks.faults.outcomes import outcome
from vprompt.bench import executors
from vprompt.bench.calls import RETRIES, Call, Lost


def mortal(folder: str, number: int, deaths: int, *needed: int) -> int:
    """Return a sum; the first so many processes that try die of it."""
    for turn in range(deaths):
        try:
            handle = os.open(f"{folder}/{number}.{turn}", os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        os.close(handle)
        os.kill(os.getpid(), signal.SIGKILL)
    return number + sum(needed)


def processes(folder: Path, seed: int, count: int) -> Counter[str]:
    """Kill workers that are processes of this machine."""
    return _run("processes", folder, seed, count)


def ray(folder: Path, seed: int, count: int) -> Counter[str]:
    """Kill workers of a Ray that is started on this machine; nothing without Ray."""
    if importlib.util.find_spec("ray") is None:
        return Counter()
    return _run("ray", folder, seed, count)


def _run(name: str, folder: Path, seed: int, count: int) -> Counter[str]:
    """Run calls, every second of which needs the answer of the one before, and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chance, found = random.Random(seed), Counter[str]()
    deaths = [chance.choice((0, 1, 1, RETRIES, RETRIES + 1)) for _ in range(count)]
    calls = [
        Call(
            str(number),
            mortal,
            (str(folder), number, deaths[number]),
            (str(number - 1),) if number % 2 else (),
        )
        for number in range(count)
    ]
    answers = dict(executors.build(name, workers=2, num_cpus=1, num_gpus=0).run(calls))
    for number in range(count):
        lost = deaths[number] > RETRIES or (number % 2 and deaths[number - 1] > RETRIES)
        wanted = number + (number - 1 if number % 2 else 0)
        answer = answers.get(str(number))
        right = isinstance(answer, Lost) if lost else answer == wanted
        kind = outcome(lambda: right)  # noqa: B023
        found["refused" if kind == "same" and lost else kind] += 1
    return found
