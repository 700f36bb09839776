"""Runner: pick jobs, run what is not finished, and keep every result as soon as it is there."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vprompt.bench.jobs import Job
from vprompt.bench.recipe import check_known
from vprompt.bench.store import Store
from vprompt.bench.work import choose, run_job
from vprompt.errors import VPromptError
from vprompt.files import read_json
from vprompt.progress import SILENT, Progress

# The candidate that is the method's result.
HEADLINE = {"learn": "learned", "search": "learned", "combine": "tuned"}


@dataclass
class Report:
    """What became of the jobs of one call, by id; `waiting` lack the result of another job."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)


def pick(
    jobs: Sequence[Job],
    *,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    shard: tuple[int, int] = (1, 1),
) -> list[Job]:
    """Return the jobs that are asked for, and those that they need, in the given order.

    Shard `(i, n)` is the i-th of n parts, counted from 1; runs of one method on one task stay
    together.
    """
    check_known("method", methods, [job.method for job in jobs if job.role == "final"])
    check_known("task", tasks, [job.task for job in jobs])
    check_known("seed", seeds, [job.seed for job in jobs if job.role == "final"])
    by_id = {job.id: job for job in jobs}
    wanted: set[str] = set()

    def want(job_id: str) -> None:
        if job_id not in wanted:
            wanted.add(job_id)
            for needed in by_id[job_id].needs:
                want(needed)

    for job in jobs:
        asked = job.role == "final"
        asked &= not methods or job.method in methods
        asked &= not tasks or job.task in tasks
        if asked and (not seeds or job.seed in seeds):
            want(job.id)
    picked = [job for job in jobs if job.id in wanted]
    part, parts = shard
    if not 1 <= part <= parts:
        raise VPromptError(f"A shard is i/n with i from 1 to n, but got {part}/{parts}.")
    groups = list(dict.fromkeys((job.task, job.method) for job in picked))
    return [job for job in picked if groups.index((job.task, job.method)) % parts == part - 1]


def run(
    jobs: Sequence[Job],
    store: Store,
    *,
    retry_failed: bool = False,
    progress: Progress = SILENT,
    work: Callable[..., dict[str, Any]] = run_job,
) -> Report:
    """Run every job that is not finished; one that fails is kept as failed and stops nothing.

    Failed runs are not tried again unless `retry_failed`. What another process has finished in the
    meantime is not run again.
    """
    report = Report()
    with progress.step("runs", len(jobs)) as step:
        for job in jobs:
            finished = store.finished()
            failed = store.failed()
            if store.is_finished(job, finished):
                step.advance(1)
                continue
            if job.id in failed and not retry_failed:
                report.failed[job.id] = f"{job.title}: {read_json(failed[job.id])['error']}"
                step.advance(1)
                continue
            if any(needed not in finished for needed in job.needs):
                report.waiting.append(job.id)
                step.advance(1)
                continue
            step.advance(0, job.title)
            try:
                chosen = choose([store.read(each) for each in job.select]) if job.select else None
                record = work(job, chosen=chosen)
            except Exception as error:  # one broken run must not cost the others
                report.failed[job.id] = f"{job.title}: {_sentence(error)}"
                store.write_failure(job, _failure(error))
                progress.say(f"failed: {report.failed[job.id]}")
            else:
                store.write(job, record)
                report.done.append(job.id)
                progress.say(f"{job.title}: {headline(record)}")
            step.advance(1)
    return report


def result(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the test measurement of what a run learned or tuned; None for other roles."""
    found: dict[str, Any] | None = record["test"].get(HEADLINE[record["command"]])
    return found


def headline(record: Mapping[str, Any]) -> str:
    """Say in a few words what a run reached and how long it took."""
    measured, seconds = result(record), f"{record['total_seconds']:.0f} s"
    if measured is None:
        return f"{record['tuning']['kept']}, {seconds}"
    return f"{100 * measured['acc1']:.1f} % on test, {seconds}"


def _failure(error: Exception) -> dict[str, Any]:
    trace = "" if isinstance(error, VPromptError) else "".join(traceback.format_exception(error))
    return {"error": _sentence(error), "kind": type(error).__name__, "traceback": trace}


def _sentence(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return text if isinstance(error, VPromptError) else f"{type(error).__name__}: {text}"
