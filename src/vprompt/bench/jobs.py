"""Jobs: what a recipe asks for, one frozen value per run; everything that determines a result.

A job's `id` is a digest of its content: settings as given, the images' names, sizes and labels, the
backbone's name, the pool's prompts. Where the images and the pool lie is not part of it, so results
can be continued on another machine; nor is the method's display name. What is only known after
the run (pixels, weights, code) stands in the record.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vprompt import artifact, pool, registry
from vprompt.bench.recipe import BenchRecipe, MethodEntry, TaskEntry
from vprompt.errors import VPromptError
from vprompt.files import digest
from vprompt.opening import open_task
from vprompt.task import Split, Task

PLACES = {"method", "data", "pools", "output", "device"}  # how a run is called and where it happens


class Job(BaseModel):
    """One run. `role` is `source` (a prompt of the pool), `select` (a point of a grid) or `final`.

    `needs` are the ids of runs that have to be there first; the chosen settings of a `final` run
    come from those of its `select` runs, so they are not in `train`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["source", "select", "final"] = "final"
    command: Literal["learn", "combine"]
    method: str
    spec: str
    options: dict[str, Any] = Field(default_factory=dict)
    task: str
    seed: int
    shots: int | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    train_on: Literal["train", "trainval"] = "train"
    model: str
    image_size: int | None = None
    protocol: str = ""
    exclude: tuple[str, ...] = ()
    allow_absent: bool = False
    skip_bad: bool = False
    data_digest: str
    pool_digest: str | None = None
    select: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    data: str
    pools: tuple[str, ...] = ()
    output: str | None = None
    device: str = "auto"

    @functools.cached_property
    def id(self) -> str:
        """The digest of what determines the result, 16 hexadecimal digits."""
        return digest(json.dumps(self.identity(), sort_keys=True))[:16]

    def identity(self) -> dict[str, Any]:
        """Return what determines the result, as plain values."""
        return self.model_dump(mode="json", exclude=PLACES)

    @property
    def needs(self) -> tuple[str, ...]:
        """The runs that have to be finished first."""
        return self.select + self.sources

    @property
    def title(self) -> str:
        """Say in a few words which run it is."""
        words = f"{self.task}, {self.method}, seed {self.seed}"
        return words if self.role == "final" else f"{words}, {self.role}"


def expand(
    recipe: BenchRecipe, *, data: Path | None, output: Path, device: str = "auto"
) -> list[Job]:
    """Return all jobs of a recipe, those that others need first and neighbours sharing a task.

    Every task is opened and every pool's artefacts are read, so what is missing is found here.
    """
    tasks = [_Target(recipe, task, data, output, device) for task in recipe.tasks]
    sources = {target.entry.name: target.source() for target in tasks if recipe.sources}
    jobs = list(sources.values())
    for target in tasks:
        needed = tuple(job for name, job in sources.items() if name != target.entry.name)
        chosen = {method.name: list(target.selections(method, needed)) for method in recipe.methods}
        jobs += itertools.chain.from_iterable(chosen.values())
        for seed in recipe.seeds:
            jobs += [
                target.final(method, seed, needed, chosen[method.name]) for method in recipe.methods
            ]
    return list({job.id: job for job in reversed(jobs)}.values())[::-1]


class _Target:
    """One task of a recipe: knows what all of its jobs have in common."""

    def __init__(
        self, recipe: BenchRecipe, entry: TaskEntry, data: Path | None, output: Path, device: str
    ) -> None:
        self.recipe, self.entry, self.output = recipe, entry, output
        self.place = place_of(entry, data)
        self.shared = {
            "task": entry.name,
            "shots": entry.shots or recipe.shots,
            "model": recipe.backbone.model,
            "image_size": recipe.backbone.image_size,
            "protocol": recipe.protocol,
            "allow_absent": recipe.allow_absent,
            "skip_bad": recipe.skip_bad,
            "data_digest": task_digest(open_task(self.place, allow_absent=recipe.allow_absent)),
            "data": self.place,
            "device": device,
        }

    def source(self) -> Job:
        """Return the job that learns the task's prompt for the pool of the others."""
        sources = self.recipe.sources
        assert sources is not None
        return Job(
            role="source",
            command="learn",
            method="source",
            spec=str(registry.parse(sources.learn)),
            seed=sources.seed,
            train=self.recipe.train_of_sources(),
            train_on=sources.train_on,
            output=str(self.output / "pool" / self.entry.name),
            **self.shared,
        )

    def selections(self, method: MethodEntry, sources: Sequence[Job]) -> Iterator[Job]:
        """Yield one job for every point of a method's grid."""
        selection, grid = self.recipe.selection, self.recipe.grid_of(method)
        if selection is None or not grid:
            return
        seed = self.recipe.seeds[0] if selection.seed is None else selection.seed
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            yield self._run(method, seed, sources, role="select", point=point)

    def final(
        self, method: MethodEntry, seed: int, sources: Sequence[Job], selections: Sequence[Job]
    ) -> Job:
        """Return a job whose result stands in the table."""
        selection = self.recipe.selection
        train_on = self.recipe.train_on if selection is None else selection.then
        select = tuple(job.id for job in selections)
        return self._run(method, seed, sources, train_on=train_on, select=select)

    def _run(
        self,
        method: MethodEntry,
        seed: int,
        sources: Sequence[Job],
        *,
        point: dict[str, Any] | None = None,
        **given: Any,
    ) -> Job:
        combines = method.command == "combine"
        if combines:
            learned = [str(job.output) for job in sources]
            given["pools"] = (*self.recipe.pools, *learned)
            given["sources"] = tuple(job.id for job in sources)
            given["exclude"] = tuple(self.entry.exclude)
            given["pool_digest"] = pool_digest(self.recipe.pools, self.entry.exclude)
        return Job(
            command=method.command,
            method=method.name,
            spec=method.spec(seed),
            options=method.options,
            seed=seed,
            train={**self.recipe.train_of(method), **(point or {})},
            **given,
            **self.shared,
        )


def place_of(entry: TaskEntry, data: Path | None) -> str:
    """Return what opens a task: its `data` as it is, or its folder under the data folder."""
    if entry.data is not None:
        return entry.data
    if data is None:
        raise VPromptError(
            f"The task {entry.name!r} is a folder of image sets: say where they are, --data DIR."
        )
    name, _, variant = entry.name.partition(":")
    if (data / name).is_dir():
        return str(data / entry.name)
    settings = {"root": str(data), "name": name, **({"prefix": variant} if variant else {})}
    return str(registry.Spec("vtab", settings))  # knows the other names of VTAB's tasks


def task_digest(task: Task) -> str:
    """Return a digest of names, sizes and labels of the images to learn from and choose by.

    Pixels are not read: their digest stands in the record. Of the test split only its size counts.
    """
    splits = [task.train] + ([] if task.val is None else [task.val])
    facts = {
        "classes": list(task.classes),
        "test": None if task.test is None else len(task.test),
        "splits": [_split_digest(split) for split in splits],
    }
    return digest(json.dumps(facts, sort_keys=True))[:16]


def _split_digest(split: Split) -> str:
    labels = str(split.labels)
    if isinstance(split.images, np.ndarray):
        return digest(labels, str(split.images.shape), np.ascontiguousarray(split.images).tobytes())
    names = [str(path) for path in split.images]
    root = os.path.commonpath(names)
    try:
        sizes = {path: path.stat().st_size for path in set(split.images)}
    except OSError as error:
        raise VPromptError(
            f"No image file at {error.filename}, although a list names it."
        ) from None
    return digest(
        labels,
        *(f"{os.path.relpath(path, root)} {sizes[path]}" for path in split.images),
    )


@functools.lru_cache(maxsize=64)
def _artifact_digest(folder: Path, changed: int) -> str:
    del changed  # a rewritten artefact is read again
    return artifact.load(folder).digest


def pool_digest(pools: Iterable[str], exclude: Iterable[str]) -> str:
    """Return a digest of the names and tokens of a pool's prompts."""
    left_out = set(exclude)
    found = []
    for entry in pool.entries(list(pools)) if pools else []:
        if entry.name in left_out:
            continue
        if entry.problem is not None:
            raise VPromptError(entry.problem)
        weights = entry.folder / artifact.TENSORS
        found.append(f"{entry.name} {_artifact_digest(entry.folder, weights.stat().st_mtime_ns)}")
    return digest(*found)[:16]
