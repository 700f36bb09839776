"""Runner: pick jobs, run what is not finished, and keep every result as soon as it is there."""

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vprompt.artifacts import final
from vprompt.bench import joint, shared
from vprompt.bench.calls import Call, Executor, Lost
from vprompt.bench.executors import Local
from vprompt.bench.jobs import Job
from vprompt.bench.recipe import check_known
from vprompt.bench.store import Store
from vprompt.bench.work import choose, run_job
from vprompt.core import precision
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.opening import resolve_device

LOCAL = Local()


@dataclass
class Report:
    """What became of the jobs of one call, by id.

    `waiting` lack the result of another job; `lost` is where processes or hosts died too often.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
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


def mixed_precision(jobs: Sequence[Job], store: Store, device: str) -> list[str]:
    """Say which finished runs were made in a precision that this device would not use for them.

    Rounding alone moves the accuracy of a run with few images by points: a table whose rows differ
    in precision compares machines as well as methods.
    """
    finished = store.finished()
    done = [job for job in jobs if job.id in finished]
    if not done or len(done) == len(jobs):
        return []
    made: Counter[tuple[str, str]] = Counter()
    for job in done:
        there = store.record(finished[job.id], "machine")["machine"].get("precision", "unknown")
        here = precision.resolve(job.train.get("precision", "auto"), resolve_device(device))
        made[str(there), here] += there != here
    return [
        f"{number} finished runs were made in {there}, and here they would be in {here}: finish "
        f"this on a machine that runs {there}, or start another --output"
        for (there, here), number in sorted((+made).items())
    ]


def run(
    jobs: Sequence[Job],
    store: Store,
    *,
    retry_failed: bool = False,
    executor: Executor = LOCAL,
    fleet: str | int = "auto",
    progress: Progress = SILENT,
    work: Callable[..., dict[str, Any]] = run_job,
) -> Report:
    """Run every job that is not finished; one that fails is kept as failed and stops nothing.

    Failed runs are not tried again unless `retry_failed`. What another process has finished in the
    meantime is not run again. Results are written here, as they come, whatever host they come from.
    `fleet` says how many runs of one backbone and size share their passes: see `joint`.
    """
    report = Report()
    calls = _calls(jobs, store, work, report, retry_failed=retry_failed)
    by_id = {job.id: job for job in jobs}
    if executor.parallel and work is run_job:
        calls = shared.before(calls, [by_id[call.key] for call in calls])
    asked = fleet if work is run_job else "off"
    together = joint.join(calls, by_id, asked, parallel=executor.parallel)
    titles = {call.key: by_id[call.key].title if call.key in by_id else call.key for call in calls}
    with progress.step("runs", len(calls)) as step:
        answers = executor.run(
            together.calls,
            lambda key: step.advance(0, "; ".join(titles[k] for k in together.keys(key))),
        )
        with contextlib.closing(answers):  # ends what is under way, whatever happens here
            for name, found in answers:
                for key, answer in together.answers(name, found):
                    if key in by_id:
                        _keep(by_id[key], answer, store, report, progress)
                    step.advance(1)
    return report


def _calls(
    jobs: Sequence[Job],
    store: Store,
    work: Callable[..., dict[str, Any]],
    report: Report,
    *,
    retry_failed: bool,
) -> list[Call]:
    """Return a call for every job that can be run, and report what cannot."""
    finished, failed = store.finished(), store.failed()
    calls: dict[str, Call] = {}
    for job in jobs:
        if store.is_finished(job, finished):
            continue
        if job.id in failed and not retry_failed:
            report.failed[job.id] = f"{job.title}: {store.why_failed(failed[job.id])}"
        elif any(need not in calls and need not in finished for need in job.needs):
            report.waiting.append(job.id)
        else:
            needs = tuple(need for need in job.needs if need in calls)
            known = [store.read(need) for need in job.select if need not in calls]
            arguments = (job, str(store.folder), work, known)
            calls[job.id] = Call(job.id, attempt, arguments, needs)
    return list(calls.values())


@dataclass(frozen=True)
class Answer:
    """What became of a job: its record, or why there is none."""

    state: Literal["done", "found", "failed", "waiting"]
    record: dict[str, Any] = field(default_factory=dict)


def attempt(
    job: Job,
    folder: str,
    work: Callable[..., dict[str, Any]],
    known: Sequence[dict[str, Any]],
    *needed: Any,
) -> Answer:
    """Run a job wherever this is; `needed` are the answers of those that come before it.

    Nothing is written: a benchmark's folder that cannot be seen from here is no hindrance.
    """
    before = [answer for answer in needed if isinstance(answer, Answer)]
    if any(answer.state in ("failed", "waiting") for answer in before):
        return Answer("waiting")
    try:
        store = Store(folder)
        finished = store.finished()  # by another process, since the start
        if store.is_finished(job, finished):
            return Answer("found", store.read(job.id))
        records = {record["id"]: record for record in (*known, *(a.record for a in before))}
        chosen = choose([records[each] for each in job.select]) if job.select else None
        return Answer("done", work(job, chosen=chosen))
    except Exception as error:  # one broken run must not cost the others
        return Answer("failed", _failure(error))


def _keep(
    job: Job, answer: Answer | Lost, store: Store, report: Report, progress: Progress
) -> None:
    if isinstance(answer, Lost):
        report.lost[job.id] = f"{job.title}: {answer.reason}"
        progress.say(f"lost: {report.lost[job.id]}")
    elif answer.state == "waiting":
        report.waiting.append(job.id)
    elif answer.state == "failed":
        report.failed[job.id] = f"{job.title}: {answer.record['error']}"
        store.write_failure(job, answer.record)
        progress.say(f"failed: {report.failed[job.id]}")
    elif answer.state == "done":
        store.write(job, answer.record)
        report.done.append(job.id)
        progress.say(f"{job.title}: {headline(answer.record)}")


def headline(record: Mapping[str, Any]) -> str:
    """Say in a few words what a run reached and how long it took."""
    measured, seconds = final.of(record), f"{record['total_seconds']:.0f} s"
    if measured is None:
        return f"{record['tuning']['kept']}, {seconds}"
    return f"{100 * measured['acc1']:.1f} % on test, {seconds}"


def _failure(error: Exception) -> dict[str, Any]:
    trace = "" if isinstance(error, VPromptError) else "".join(traceback.format_exception(error))
    return {"error": _sentence(error), "kind": type(error).__name__, "traceback": trace}


def _sentence(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return text if isinstance(error, VPromptError) else f"{type(error).__name__}: {text}"
