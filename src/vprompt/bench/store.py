"""Store: the folder of a benchmark. One JSON file per finished run, written atomically.

OUTPUT/
  bench.json              the recipe and which run belongs to which cell of the table
  runs/TASK_METHOD_seedN_ID.json
  runs.jsonl.xz           the same runs in one file, once `bench pack` has packed them
  failed/...              the same, for runs that ended in an error
  pool/TASK/              prompts that the recipe's `sources` learned
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.artifacts import artifact
from vprompt.bench.jobs import Job
from vprompt.bench.recipe import BenchRecipe, check_known, from_values
from vprompt.core.errors import VPromptError
from vprompt.core.files import read_json, write_text
from vprompt.core.wide import wide_json
from vprompt.results.records import Records

MANIFEST = "bench.json"


@dataclass(frozen=True)
class Cell:
    """Where a run's result stands in the table."""

    method: str
    task: str
    seed: int
    id: str


class Store:
    """Reads and writes a benchmark's folder; holds nothing that is not on disk."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.runs = Records(self.folder / "runs")
        self.failures = Records(self.folder / "failed")

    def start(self, recipe: BenchRecipe, jobs: Iterable[Job]) -> None:
        """Write the recipe, and the ids of the runs in its table."""
        cells = [[j.method, j.task, j.seed, j.id] for j in jobs if j.role == "final"]
        manifest = {"recipe": recipe.model_dump(mode="json"), "cells": cells}
        write_text(self.folder / MANIFEST, wide_json(manifest))

    def recipe(self) -> BenchRecipe:
        """Return the recipe that was run here."""
        return from_values(self._manifest()["recipe"], where=str(self.folder / MANIFEST))

    def cells(self) -> list[Cell]:
        """Return every cell of the table, finished or not."""
        return [Cell(*cell) for cell in self._manifest()["cells"]]

    def finished(self) -> dict[str, str]:
        """Return the record's name of every finished run, by id; packed or not."""
        return {_id_of(name): name for name in self.runs.names()}

    def failed(self) -> dict[str, str]:
        """Return the name of every failed run, by id."""
        return {_id_of(name): name for name in self.failures.names()}

    def read(self, job_id: str) -> dict[str, Any]:
        """Return the record of a finished run."""
        name = self.finished().get(job_id)
        if name is None:
            raise VPromptError(f"{self.folder} holds no finished run {job_id!r}.")
        return self.record(name)

    def record(self, name: str, *needed: str) -> dict[str, Any]:
        """Return the record of this name; one that is not whole is named, and how it comes anew."""
        record = self.runs.read(name)
        if not isinstance(record, dict) or any(not _holds(record, each) for each in needed):
            raise VPromptError(
                f"{self.runs.folder / name}.json is not the whole record of a run. Remove it: the "
                "next `vprompt bench run` makes it again."
            )
        return record

    def records(self, cells: Iterable[Cell]) -> dict[Cell, dict[str, Any]]:
        """Return the records of all cells that are finished."""
        finished = self.finished()
        return {cell: self.runs.read(finished[cell.id]) for cell in cells if cell.id in finished}

    def select(
        self,
        *,
        methods: Sequence[str] | None = None,
        task: str | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Yield the finished runs of the table that are asked for, read one at a time."""
        recipe, finished = self.recipe(), self.finished()
        check_known("method", methods or (), [each.name for each in recipe.methods])
        check_known("task", () if task is None else [task], [each.name for each in recipe.tasks])
        check_known("seed", () if seed is None else [seed], recipe.seeds)
        for cell in self.cells():
            asked = methods is None or cell.method in methods
            asked &= task in (None, cell.task) and seed in (None, cell.seed)
            if asked and cell.id in finished:
                yield cell, self.runs.read(finished[cell.id])

    def write(self, job: Job, record: dict[str, Any]) -> None:
        """Keep a finished run; a failure of the same run before is forgotten."""
        self.runs.write(_name_of(job), record)
        self.failures.remove(_name_of(job))

    def write_failure(self, job: Job, failure: dict[str, Any]) -> None:
        """Keep why a run failed."""
        told = {"id": job.id, "job": job.model_dump(mode="json"), **failure}
        self.failures.write(_name_of(job), told)

    def why_failed(self, name: str) -> str:
        """Return the sentence with which a run failed."""
        told = self.failures.read(name)
        return str(told.get("error", "no reason is kept")) if isinstance(told, dict) else "unknown"

    def is_finished(self, job: Job, finished: dict[str, str]) -> bool:
        """Say whether a run's record is there, and the prompt it learned for the pool, if any."""
        if job.id not in finished or job.output is None:
            return job.id in finished
        try:
            found = artifact.load(job.output).digest
        except VPromptError:
            return False
        return bool(self.record(finished[job.id], "tuning")["tuning"].get("prompt_digest") == found)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise VPromptError(
                f"{self.folder} holds no benchmark: there is no {MANIFEST}. Run one: `vprompt "
                "bench run RECIPE --output DIR`."
            )
        values: dict[str, Any] = read_json(path)
        return values


def _holds(record: dict[str, Any], key: str) -> bool:
    return isinstance(record.get(key), dict)


def _id_of(name: str) -> str:
    return name.rpartition("_")[2]


def _name_of(job: Job) -> str:
    role = [] if job.role == "final" else [job.role]
    words = (job.task, job.method, f"seed{job.seed}", *role)
    plain = (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)
    return "_".join([*plain, job.id])
