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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vprompt.artifacts import artifact, pool
from vprompt.bench.recipe import BenchRecipe, Command, MethodEntry, Sources, TaskEntry
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.data.task import Split, Task
from vprompt.opening import check_classes, open_task

# How a run is called, where it happens, and what follows from the rest.
PLACES = {"method", "data", "pools", "output", "device", "counts", "cut"}
_SPLITS = ("train", "val", "test")


class Job(BaseModel):
    """One run. `role` is `source` (a prompt of the pool), `select` (a point of a grid) or `final`.

    `needs` are the ids of runs that have to be there first; the chosen settings of a `final` run
    come from those of its `select` runs, so they are not in `train`. `counts` are the images of
    each split that the run may see, and the sources that it combines; `cut` says how they were cut.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["source", "select", "final"] = "final"
    command: Command
    method: str
    spec: str
    options: dict[str, Any] = Field(default_factory=dict)
    task: str
    seed: int
    shots: int | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    train_on: Literal["train", "trainval"] = "train"
    model: str
    image_size: int | tuple[int, int] | None = None
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
    counts: dict[str, int] = Field(default_factory=dict)
    cut: str = ""

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

    targets: dict[str, _Target] = {}

    def opened(entry: TaskEntry, seed: int) -> _Target:
        own = entry if entry.data is None else entry.at(data, seed)
        key = f"{own.name} {own.data}"  # the same for all seeds, unless each draws its own images
        if key not in targets:
            targets[key] = _Target(recipe, own, data=data, output=output, device=device)
        return targets[key]

    sources: dict[str, Job] = {}
    if recipe.sources is not None:
        for entry in recipe.sources.tasks or recipe.tasks:
            target = opened(entry, recipe.sources.seed)
            sources[entry.name] = target.source(recipe.sources)
    jobs = list(sources.values())
    for entry in recipe.tasks:
        needed = tuple(job for source, job in sources.items() if source != entry.name)
        chooser = opened(entry, _selection_seed(recipe))
        chosen = {method.name: chooser.selections(method, needed) for method in recipe.methods}
        jobs += itertools.chain.from_iterable(chosen.values())
        for seed in recipe.seeds:
            target = opened(entry, seed)
            jobs += [
                target.final(method, seed, needed, chosen[method.name]) for method in recipe.methods
            ]
    return jobs


def _selection_seed(recipe: BenchRecipe) -> int:
    """Return the seed that settings are chosen with."""
    selection = recipe.selection
    return recipe.seeds[0] if selection is None or selection.seed is None else selection.seed


class _Target:
    """One task of a recipe: knows what all of its jobs have in common."""

    def __init__(
        self, recipe: BenchRecipe, entry: TaskEntry, *, data: Path | None, output: Path, device: str
    ) -> None:
        self.recipe, self.entry, self.output = recipe, entry, output
        place = place_of(entry, data)
        task = open_task(place, allow_absent=recipe.allow_absent)
        check_classes(task, "bench")
        shots = entry.shots or recipe.shots
        self.counts = _counts(task if shots is None else task.few_shot(shots, 0))
        self.pool_digest = pool_digest(recipe.pools, entry.exclude)
        self.pooled = _count_sources(recipe.pools, entry.exclude, task)
        self.shared = {
            "task": entry.name,
            "shots": shots,
            "model": recipe.backbone.model,
            "image_size": recipe.backbone.image_size,
            "protocol": recipe.protocol,
            "allow_absent": recipe.allow_absent,
            "skip_bad": recipe.skip_bad,
            "data_digest": task_digest(task),
            "data": place,
            "device": device,
            "cut": task.reading.cut,
        }

    def source(self, sources: Sources) -> Job:
        """Return the job that learns the task's prompt for the pool of the others."""
        return self._job(
            role="source",
            command="learn",
            method="source",
            spec=str(registry.parse(sources.learn)),
            seed=sources.seed,
            train=self.recipe.train_of_sources(),
            train_on=sources.train_on,
            output=str(self.output / "pool" / self.entry.name),
        )

    def selections(self, method: MethodEntry, sources: Sequence[Job]) -> list[Job]:
        """Return one job for every point of a method's grid."""
        selection, grid = self.recipe.selection, self.recipe.grid_of(method)
        if selection is None or not grid:
            return []
        seed = _selection_seed(self.recipe)
        points = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
        return [self._run(method, seed, sources, role="select", point=point) for point in points]

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
        if method.command == "combine":
            learned = [str(job.output) for job in sources]
            given["pools"] = (*self.recipe.pools, *learned)
            given["sources"] = tuple(job.id for job in sources)
            given["exclude"] = tuple(self.entry.exclude)
            given["pool_digest"] = self.pool_digest
        return self._job(
            command=method.command,
            method=method.name,
            spec=method.spec(seed),
            options=method.options,
            seed=seed,
            train={**self.recipe.train_of(method), **(point or {})},
            **given,
        )

    def _job(self, **given: Any) -> Job:
        counts = dict(self.counts)
        if given.get("train_on") == "trainval":
            counts = {**counts, "train": counts["train"] + counts["val"], "val": 0}
        if given.get("role", "final") != "final":
            counts["test"] = 0  # stays closed
        counts["sources"] = self.pooled + len(given.get("sources", ()))
        return Job(**given, **self.shared, counts=counts)


def _counts(task: Task) -> dict[str, int]:
    parts = {"train": task.train, "val": task.val, "test": task.test}
    return {name: 0 if part is None else len(part) for name, part in parts.items()}


def sizes(jobs: Iterable[Job]) -> list[str]:
    """Return the sizes of the splits of every task and how they were cut, a line each."""
    found = {job.task: (job.counts, f": {job.cut}" if job.cut else "") for job in jobs}
    return [
        f"{task}: {', '.join(f'{name} {each[name]}' for name in _SPLITS if each.get(name))}{cut}"
        for task, (each, cut) in found.items()
    ]


def _count_sources(pools: Sequence[str], exclude: Sequence[str], target: Task) -> int:
    """Count a pool's prompts but the target's own, which `combine` leaves out."""
    held = pool.entries(list(pools)) if pools else []
    found = [e for e in held if e.name not in exclude and not e.promptless]
    own = [e for e in found if ((e.config or {}).get("task") or {}).get("name") == target.name]
    return len(found) - len(own)


def place_of(entry: TaskEntry, data: Path | None) -> str:
    """Return what opens a task: its `data` as it is, its folder under the data folder, or itself.

    A name that stands in no folder may be that of a task that needs none, such as `digits`.
    """
    if entry.data is not None:
        return entry.data
    name, _, variant = entry.name.partition(":")
    if (data is None or not (data / name).is_dir()) and _is_built_in(entry.name):
        return entry.name
    if data is None:
        raise VPromptError(
            f"The task {entry.name!r} is a folder of image sets: say where they are, --data DIR."
        )
    if (data / name).is_dir():
        return str(data / entry.name)
    settings = {"root": str(data), "name": name, **({"prefix": variant} if variant else {})}
    return str(registry.Spec("vtab", settings))  # knows the other names of VTAB's tasks


def _is_built_in(name: str) -> bool:
    """Say whether a task of this name opens without a folder or a file."""
    if name not in registry.names("tasks"):
        return False
    try:
        registry.require("tasks", registry.parse(name))
    except VPromptError:
        return False
    return True


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
        if entry.name in left_out or entry.other or entry.stray:
            continue
        if entry.problem is not None:
            raise VPromptError(entry.problem)
        weights = entry.folder / artifact.TENSORS
        found.append(f"{entry.name} {_artifact_digest(entry.folder, weights.stat().st_mtime_ns)}")
    return digest(*found)[:16]
