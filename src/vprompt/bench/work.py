"""Work: run one job. A plain function of the job and of the settings chosen for it.

Nothing is shared between jobs but what can be computed again: the loaded backbone here, decoded
images and evidence in the cache on disk. So jobs may run in any process and on any machine.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vprompt import flow, searching
from vprompt.bench.jobs import Job
from vprompt.core import fleet
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.data.preprocessing import ImageSize
from vprompt.data.task import Task
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone
from vprompt.opening import open_backbone, open_task
from vprompt.outcome import Outcome
from vprompt.results import protocols
from vprompt.results.protocol import Protocol


def run_job(
    job: Job, *, chosen: Mapping[str, Any] | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Run a job and return its record: the record of the run, and which job it was.

    `chosen` are the training settings that the job's selection found best. The test split is
    opened for `final` jobs alone.
    """
    if job.select and chosen is None:
        raise VPromptError(f"{job.title}: its settings are not chosen yet.")
    began = fleet.now()
    config = TrainConfig.checked({**job.train, **(chosen or {}), "seed": job.seed})
    backbone = load_backbone(job.model, job.image_size, job.device)
    run = {"learn": _learn, "search": _search, "combine": _combine}[job.command]
    outcome = run(job, backbone, config, progress)
    return {
        **outcome.run,
        "id": job.id,
        "job": {**job.identity(), "method": job.method},
        "total_seconds": round(fleet.now() - began, 2),
    }


def choose(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the training settings of the record that is best on validation.

    In a tie the smaller rate wins, of the adapter and then of the head, and then the earlier point.
    """

    def key(record: Mapping[str, Any]) -> tuple[float, float, float]:
        train = TrainConfig.checked(record["train"])
        return val_accuracy(record), -train.lr, -train.rate_of_head

    best = max(records, key=key)
    return {name: value for name, value in best["job"]["train"].items() if name != "seed"}


def val_accuracy(record: Mapping[str, Any]) -> float:
    """Return the accuracy on validation images of the epoch that a run kept.

    With class weights it is the balanced one, by which epochs were compared as well.
    """
    tuning = record["tuning"]
    kept = next(e for e in tuning["history"] if e["epoch"] == tuning["kept_epoch"])
    if kept["val_accuracy"] is None:
        raise VPromptError(
            f"{record['job']['task']} has no validation images, so no settings can be chosen. "
            "Leave the selection out of the recipe."
        )
    return float(kept["val_score"] if kept.get("val_measure") else kept["val_accuracy"])


def open_target(job: Job) -> Task:
    """Return a job's task with its shots drawn, and its validation images joined if it says so."""
    task = open_task(job.data, allow_absent=job.allow_absent)
    if job.shots is not None:
        task = task.few_shot(job.shots, job.seed)
    if job.train_on == "trainval" and task.val is not None:
        task = replace(task, train=task.train + task.val, val=None)
    return task


@functools.lru_cache(maxsize=1)
def load_backbone(model: str, image_size: ImageSize | None, device: str) -> Backbone:
    """Load a backbone once for all jobs of a process; it is frozen, so they can share it."""
    return open_backbone(model, image_size=image_size, device=device)


def _protocol(job: Job) -> Protocol | None:
    """Return the published protocol of that name, so that the record says where a run departs."""
    return protocols.known().get(job.protocol)


def _learn(job: Job, backbone: Backbone, config: TrainConfig, progress: Progress) -> Outcome:
    return flow.learn(
        open_task(job.data, allow_absent=job.allow_absent),
        model=backbone,
        method=job.spec,
        config=config,
        shots=job.shots,
        draw=job.seed,
        train_on=job.train_on,
        output=job.output,
        overwrite=True,
        test=job.role == "final",
        keep_states=True,  # several methods may start from one prompt
        protocol=_protocol(job),
        skip_bad=job.skip_bad,
        progress=progress,
    )


def _search(job: Job, backbone: Backbone, config: TrainConfig, progress: Progress) -> Outcome:
    return searching.search(
        open_task(job.data, allow_absent=job.allow_absent),
        model=backbone,
        method=job.spec,
        config=config,
        search_config=TrainConfig.checked({**job.options["search_train"], "seed": job.seed}),
        shots=job.shots,
        draw=job.seed,
        output=job.output,
        overwrite=True,
        test=job.role == "final",
        protocol=_protocol(job),
        skip_bad=job.skip_bad,
        progress=progress,
    )


def _combine(job: Job, backbone: Backbone, config: TrainConfig, progress: Progress) -> Outcome:
    return flow.combine(
        open_target(job),  # `combine` knows no trainval, so the splits are joined here
        pool=job.pools,
        model=backbone,
        method=job.spec,
        config=config,
        exclude=job.exclude,
        test=job.role == "final",
        keep_states=True,  # several methods may start from one prompt
        protocol=_protocol(job),
        skip_bad=job.skip_bad,
        progress=progress,
        **job.options,
    )
