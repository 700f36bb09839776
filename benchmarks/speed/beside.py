"""Beside: how much longer a command takes while another process keeps one core busy.

    python -m benchmarks speed.beside --data DIR

`vprompt learn`, `score` and `combine` with as many threads as there are cores, on the
demonstration's pool and backbone, alone and beside a process that does nothing but count, in turn;
wall time, start-up included. Evidence and features are in the cache before the first round, so
what is left is what had suffered: solvers, heads and training.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import POOLS, RESULTS, new_parser
from benchmarks.speed.timing import machine, spread
from vprompt.core.files import write_json


def main() -> None:
    """Measure, print and write."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of image sets")
    parser.add_argument("--pool", type=Path, default=POOLS / "demo")
    parser.add_argument("--set", default="elpv4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "speed")
    options = parser.parse_args()
    write_json(options.output / "beside.json", {**compare(options), "machine": machine()})


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of every command, alone and beside, and their ratios."""
    told = commands(options)
    wall: dict[str, dict[str, list[float]]] = {name: {"idle": [], "beside": []} for name in told}
    for turn in range(options.rounds + 1):
        for name, arguments in told.items():
            for kind in ("idle", "beside"):
                with busy() if kind == "beside" else _nothing():
                    seconds = run(arguments)
                if turn:
                    wall[name][kind].append(seconds)
        print({n: {k: t[-1:] for k, t in kinds.items()} for n, kinds in wall.items()}, flush=True)
    return {
        "cores": os.cpu_count(),
        "commands": {
            name: " ".join(["vprompt", *told[name]])
            .replace(str(options.data), "DATA")
            .replace(str(options.pool), "POOL")
            for name in told
        },
        "wall_seconds": {n: {k: spread(t) for k, t in kinds.items()} for n, kinds in wall.items()},
        "beside_over_idle": {
            name: spread([b / i for i, b in zip(kinds["idle"], kinds["beside"], strict=True)])
            for name, kinds in wall.items()
        },
    }


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the arguments of every command; none keeps anything."""
    task, pool = str(options.data / options.set), str(options.pool)
    shared = ["--shots", "10", "-q"]
    return {
        "learn": ["learn", task, *shared, "--model", "demo", "--epochs", "3", "--no-test"],
        "score": ["score", task, "--pool", pool, *shared],
        "combine": ["combine", task, "--pool", pool, *shared, "--no-test"],
        "combine hgprompt": [
            *("combine", task, "--pool", pool, *shared, "--no-test"),
            *("--method", "hgprompt", "--epochs", "1"),
        ],
    }


def run(arguments: list[str]) -> float:
    """Run a command in a folder of its own; return its wall time."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vprompt", *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


@contextmanager
def busy() -> Iterator[None]:
    """Keep one core busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


if __name__ == "__main__":
    main()
