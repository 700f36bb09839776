"""Shared: what runs beside one another would all compute, computed once before them.

First the decoded images of a target and their features without a prompt, then what every source of
a pool makes of them, a call for each source. It goes into the cache, by content: a run that does
not find it there, because its host has another cache, computes it again and gets the same.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from vprompt import stages
from vprompt.artifacts import pool
from vprompt.bench.calls import Call
from vprompt.bench.jobs import Job
from vprompt.bench.work import load_backbone, open_target
from vprompt.core.files import digest
from vprompt.core.progress import SILENT
from vprompt.learning.train_config import TrainConfig
from vprompt.pooling import combining
from vprompt.pooling.evidence import gather
from vprompt.pooling.mix import Plan, plan_of

PARTS = 32  # calls for one pool at most: each reads the whole pool
_IMAGES = {"data", "shots", "train_on", "model", "image_size", "device", "allow_absent", "skip_bad"}


def before(calls: Sequence[Call], jobs: Sequence[Job]) -> list[Call]:
    """Return the calls of jobs, each after calls for what it shares with others."""
    found: dict[str, Call] = {}
    for call, job in zip(calls, jobs, strict=True):
        new = [_images(job)]
        new += _evidence(job, [need for need in call.needs if need in job.sources], new[0])
        for each in new:
            found.setdefault(each.key, each)
        needs = (*call.needs, *(each.key for each in new))
        found[call.key] = replace(call, needs=needs)
    return list(found.values())


def prepare_images(job: Job, *needed: Any) -> None:
    """Decode a job's images and compute their features without a prompt."""
    del needed
    with contextlib.suppress(Exception):  # what is wrong is said by the runs themselves
        stages.plain_features(_setting(job))


def prepare_evidence(job: Job, part: int, parts: int, *needed: Any) -> None:
    """Gather the evidence of every source of a job's pool whose row is `part` modulo `parts`."""
    del needed
    with contextlib.suppress(Exception):
        setting, plan = _setting(job), _plan(job)
        sources = pool.load(job.pools, setting.backbone, exclude=job.exclude)
        sources = combining.without_self(sources, setting.task, SILENT)
        prompts, _, _ = combining.align_sources(sources, plan.align)
        own = {sources[row].name: prompts[row] for row in range(part, len(prompts), parts)}
        splits = [(setting.train, plan)]
        if plan.validation and setting.val is not None:
            splits.append((setting.val, Plan()))
        for examples, asked in splits if own else ():
            gather(
                setting.backbone,
                own,
                examples,
                len(setting.task.classes),
                asked,
                precision=setting.config.precision,
            )


def _images(job: Job) -> Call:
    return Call(f"images {_images_key(job)}", prepare_images, (job,))


def _evidence(job: Job, sources: Sequence[str], images: Call) -> list[Call]:
    """Return the calls for a job's pool; none where it combines nothing, or nothing is kept."""
    if job.command != "combine" or _plan(job).gradient_head == "source":
        return []
    parts = min(job.counts["sources"], PARTS)
    plan = asdict(_plan(job))
    asked = {key: plan[key] for key in _EVIDENCE}
    pooled = [job.pools, job.sources, job.exclude, job.pool_digest, asked, parts]
    key = digest(_images_key(job), json.dumps(pooled, sort_keys=True))[:16]
    return [
        Call(
            f"evidence {key}, {part + 1} of {parts}",
            prepare_evidence,
            (job, part, parts),
            (*sources, images.key),
        )
        for part in range(parts)
    ]


# What of a plan evidence depends on.
_EVIDENCE = ("gradient_head", "reference", "variances", "target_epochs", "validation", "align")


def _images_key(job: Job) -> str:
    drawn = job.seed if job.shots is not None else None
    facts = job.model_dump(mode="json", include=_IMAGES)
    precision = job.train.get("precision")
    return digest(json.dumps([facts, drawn, precision, job.data_digest], sort_keys=True))[:16]


def _plan(job: Job) -> Plan:
    return plan_of(job.spec, **job.options)


def _setting(job: Job) -> stages.Setting:
    return stages.prepare(
        load_backbone(job.model, job.image_size, job.device),
        open_target(job),
        TrainConfig.checked({**job.train, "seed": job.seed}),
        None,
        0,
        skip_bad=job.skip_bad,
        progress=SILENT,
    )
