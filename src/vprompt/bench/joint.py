"""Joint: runs of one backbone and size become one call, whose trainings are a fleet.

A joint call does what its calls do and answers for each. Which runs share a pass changes rounding
at most, and no record says it.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vprompt.bench.calls import Call, Lost
from vprompt.bench.jobs import Job
from vprompt.bench.work import load_backbone
from vprompt.core import fleet, registry
from vprompt.core.errors import VPromptError
from vprompt.data.task import Examples
from vprompt.learning import fleet_size
from vprompt.learning.adapter import Adapter
from vprompt.learning.train_config import TrainConfig

METHODS = ("vpt", "pro_vpt", "linear")  # of `learn`; what `combine` tunes is a prompt
_STAND_IN = "vpt"  # takes the memory that a sum of a pool takes, or more


class Joint:
    """Calls, some of them joint, and which jobs each joint call answers for."""

    def __init__(self, calls: Sequence[Call], held: Mapping[str, tuple[str, ...]]) -> None:
        self.calls, self.held = list(calls), dict(held)

    def keys(self, key: str) -> tuple[str, ...]:
        """Return the calls that a call stands for."""
        return self.held.get(key, (key,))

    def answers(self, key: str, answer: Any) -> Iterable[tuple[str, Any]]:
        """Yield the answer of every call that a call stands for."""
        for each in self.keys(key):
            yield each, answer if key not in self.held or isinstance(answer, Lost) else answer[each]


def join(
    calls: Sequence[Call], jobs: Mapping[str, Job], asked: str | int, *, parallel: bool
) -> Joint:
    """Return the calls, with those of jobs that may share passes made one.

    `asked` is as for `fleet_size.width`. Executors that run calls beside one another on processors
    are given none by themselves: their processes take all of them already.
    """
    fleet.checked(asked)
    levels = _levels(calls)
    groups: dict[Any, list[Call]] = {}
    for call in calls:
        job = jobs.get(call.key)
        alike = call.key if job is None or asked == fleet.OFF else _alike(job)
        groups.setdefault((levels[call.key], alike or call.key), []).append(call)
    found: list[list[Call]] = []
    for group in groups.values():
        size = 1 if len(group) < 2 else _size([jobs[c.key] for c in group], asked, parallel)
        found += [group[first : first + size] for first in range(0, len(group), size)]
    found.sort(key=lambda part: levels[part[0].key])
    held = {
        f"{part[0].key} and {len(part) - 1} more": tuple(call.key for call in part)
        for part in found
        if len(part) > 1
    }
    owner = {key: name for name, keys in held.items() for key in keys}
    return Joint([_joined(part, owner) for part in found], held)


def _alike(job: Job) -> tuple[Any, ...] | None:
    """Return what jobs have in common that may share passes; None of one that may not."""
    if job.command not in ("learn", "combine"):
        return None
    if job.command == "learn" and registry.parse(job.spec).name not in METHODS:
        return None
    precision = job.train.get("precision", "auto")
    return job.command, job.model, job.image_size, job.device, precision


def _size(jobs: Sequence[Job], asked: str | int, parallel: bool) -> int:
    """Return how many of the jobs become one call."""
    largest = max(jobs, key=lambda job: TrainConfig.checked(job.train).batch_size)
    try:
        backbone = load_backbone(largest.model, largest.image_size, largest.device)
        if asked == fleet.AUTO and parallel and backbone.device.type == "cpu":
            return 1
        spec = largest.spec if largest.command == "learn" else _STAND_IN
        if registry.parse(spec).name == "linear":
            return len(jobs)  # nothing goes backward through the network
        height, width = backbone.data_config.input_size[1:]
        count = max(1, largest.counts.get("train", 1))
        grey = np.broadcast_to(np.uint8(128), (count, height, width, 3))
        examples = Examples(grey, torch.zeros(count, dtype=torch.int64), "grey")
        build: Callable[[], Adapter] = functools.partial(registry.build("adapters", spec), backbone)
        points = [TrainConfig.checked(largest.train)] * len(jobs)
        return fleet_size.width(asked, build, examples, points)
    except VPromptError:
        if asked != fleet.AUTO:
            raise
        return 1  # the runs themselves say what is wrong


def _levels(calls: Sequence[Call]) -> dict[str, int]:
    """Return how many calls have to be finished, one after the other, before each."""
    found: dict[str, int] = {}
    for call in calls:  # those that others need come first
        found[call.key] = 1 + max((found.get(need, 0) for need in call.needs), default=-1)
    return found


def _joined(part: Sequence[Call], owner: Mapping[str, str]) -> Call:
    """Return one call for several; what they need is what the joint calls of those answer."""
    needs = dict.fromkeys(owner.get(need, need) for call in part for need in call.needs)
    if len(part) == 1 and not any(need in owner for need in part[0].needs):
        return part[0]
    name = owner.get(part[0].key, part[0].key)
    single = len(part) == 1
    return Call(name, attempt, (tuple(part), tuple(needs), single), tuple(needs))


def attempt(calls: Sequence[Call], needs: Sequence[str], single: bool, *answers: Any) -> Any:
    """Run the calls as a fleet; return an answer for each by its key, or that of a single one."""
    known: dict[str, Any] = {}
    for need, answer in zip(needs, answers, strict=True):
        known |= answer if isinstance(answer, dict) else {need: answer}
    works = [
        functools.partial(call.run, *call.arguments, *(known[need] for need in call.needs))
        for call in calls
    ]
    if single:
        return works[0]()
    found = fleet.run(works)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return {call.key: answer for call, answer in zip(calls, found, strict=True)}
