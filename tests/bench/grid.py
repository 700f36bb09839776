"""A little benchmark that every executor has to bring to the same end, and calls to try one with.

A module of its own, because other processes import what they are asked to call.
"""

import functools
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

LITTLE = {"train": 48, "val": 32, "test": 48}
RECIPE = {
    "name": "grid",
    "backbone": {"model": "tiny", "image_size": 32},
    "train": {"epochs": 1, "precision": "fp32"},
    "sources": {"learn": "vpt(num_virtual_tokens=2)"},
    "methods": [
        {"name": "VPT", "learn": "vpt(num_virtual_tokens=2)"},
        {"name": "HGPrompt", "combine": "hgprompt(bootstrap=0, gradient_head=base)"},
    ],
}
TIMES = ("seconds", "total_seconds", "machine")  # of a record: all that may differ


def task(target):
    sizes = ", ".join(f"{name}={count}" for name, count in LITTLE.items())
    return {"name": target, "data": f"dsprites(target={target}, {sizes})"}


def run_grid(folder, executor, **options):
    """Run a little benchmark of six runs, and return the report and the records by id."""
    from vprompt.bench import jobs, recipe, runner
    from vprompt.bench.store import Store

    values = RECIPE | {"tasks": [task("location"), task("orientation")]}
    read, store = recipe.from_values(values, where="it"), Store(folder)
    every = jobs.expand(read, data=None, output=store.folder, device="cpu")
    report = runner.run(every, store, executor=executor, **options)
    return report, {key: store.read(key) for key in store.finished()}


@functools.cache
def serial():
    """Return the plain records of the little benchmark, run here and one after the other."""
    from vprompt.bench.executors import Local

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(Path(folder, "cache")))
        report, records = run_grid(Path(folder, "out"), Local(), fleet="off")
    assert len(report.done) == len(records) == 6
    return plain(records)


def plain(records):
    """Return records without what may differ from one execution to the next."""

    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in (*TIMES, "pool", "replay")}
        return [strip(each) for each in value] if isinstance(value, list) else value

    return {key: strip(record) for key, record in records.items()}


# What calls do in other processes; importable there


def add(*numbers):
    return sum(numbers)


def where(folder, name):
    """Wait for a call beside this one, and say in which process and with how many threads."""
    Path(folder, name).touch()
    until(lambda: len(list(Path(folder).glob("beside*"))) == 2, seconds=60)
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def die(folder, times, *needed):
    """Kill this process the first times; leave a mark of each."""
    mark = Path(folder, f"died {len(list(Path(folder).glob('died*')))}")
    if len(list(Path(folder).glob("died*"))) < times:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive", *needed


def sleep(folder):
    Path(folder, f"pid {os.getpid()}").touch()
    time.sleep(60)


def on_node(folder, number, doomed):
    """Return the number once a call waits on the doomed node, where none ever returns.

    So the other node cannot finish all calls before the doomed one has begun its first.
    """
    import ray

    Path(folder, f"{number} began {time.monotonic_ns()}").touch()
    if ray.get_runtime_context().get_node_id() == doomed:
        Path(folder, f"{number} waits").touch()
        time.sleep(600)
    until(lambda: list(Path(folder).glob("* waits")), seconds=300)
    return number


def until(condition, seconds=120):
    """Wait for what comes true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come true within {seconds} s"
        time.sleep(0.02)
    return found
