"""Timing: alternatives run in turn in one process, so that all see the machine alike."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vprompt.results import runs

Actions = Mapping[str, Callable[[], Any]]


def in_turn(
    actions: Actions, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of every action in every round, after one round to warm up.

    `clock` may be `time.process_time`, which counts what the processor did for this. The time that
    the rest will take is printed after the first round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        began = time.perf_counter()
        for name, action in actions.items():
            start = clock()
            action()
            settle()
            if turn:
                seconds[name].append(clock() - start)
        if not turn:
            left = repeats * (time.perf_counter() - began)
            print(f"{', '.join(actions)}: about {left / 60:.1f} min", flush=True)
    return seconds


def settle() -> None:
    """Wait until an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(action: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median time of an action after one run to warm up."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def summary(seconds: Mapping[str, list[float]], **ratios: tuple[str, str]) -> dict[str, Any]:
    """Return the median seconds with least and most, and ratios of rounds: slower, faster.

    A ratio is the median over rounds of the first action's time over the second's, with the least
    and the most of them.
    """
    found: dict[str, Any] = {"seconds": {name: spread(times) for name, times in seconds.items()}}
    found["ratios"] = {
        name: spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
        for name, (slow, fast) in ratios.items()
    }
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most of some values."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "rounds": len(values),
    }


def machine(precision: str = "auto") -> dict[str, Any]:
    """Describe versions and processor, and how busy the machine was beside this."""
    described = runs.describe_machine(torch.device("cpu"), precision)
    return {**described, "load_average": os.getloadavg()[0]}


def matmul_peak(
    dtype: torch.dtype,
    size: int = 2048,
    repeats: int = 5,
    device: torch.device | None = None,
) -> float:
    """Return the floating-point operations per second of the best of a few square products."""
    left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        torch.mm(left, right)
        settle()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[1:])
