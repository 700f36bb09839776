"""Embedding: a run's training images as its prompts show them to the backbone, in the plane.

The features are made again, from the images and the pool that the run had; the test split is not
opened. They come from the cache where they were made before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vprompt.artifacts import origin, pool
from vprompt.bench.jobs import Job, expand
from vprompt.bench.recipe import check_known
from vprompt.bench.store import Cell, Store
from vprompt.bench.work import load_backbone, open_target
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.core.types import Features
from vprompt.models.backbone import Backbone
from vprompt.models.features import features_of
from vprompt.pooling import combining
from vprompt.prompts import compose
from vprompt.prompts.prompt import Prompt
from vprompt.report.maps import MOST_CLASSES

FEWEST = 5  # images that make a map
SHOWN = 3  # single sources beside the sum, as in the paper
_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Embedded:
    """The features of the same images under several prompts, by the prompt's name."""

    cell: Cell
    features: dict[str, Features]
    labels: list[int]
    classes: tuple[str, ...]


def embed(
    store: Store,
    *,
    data: Path | None = None,
    method: Sequence[str] = (),
    task: str | None = None,
    seed: int | None = None,
    source: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = SILENT,
) -> Embedded:
    """Return the training images of a run under single sources and under their weighted sum.

    The run is the first that was asked for, by default of HGPrompt on a target with few classes.
    The sources are its three heaviest, or those named in `source`. `data` is as for `expand`.
    """
    cell, record = _choose(store, method=method, task=task, seed=seed)
    names = _pick(record, source)
    job = _job_of(store, cell, data, device)
    backbone = load_backbone(job.model, job.image_size, job.device)
    target = open_target(job)
    examples = target.examples(
        target.train, backbone.data_config, skip_bad=job.skip_bad, progress=progress
    )
    if len(examples) < FEWEST:
        raise VPromptError(
            f"A map needs at least {FEWEST} training images, but {job.task} has {len(examples)}."
        )
    prompts, total = _prompts(job, record, backbone)
    shown = {**{name: prompts[name] for name in names}, "weighted sum": total}
    precision = record["train"].get("precision", "auto")
    features = {
        name: features_of(backbone, prompt, examples, precision=precision)
        for name, prompt in shown.items()
    }
    return Embedded(cell, features, examples.labels.tolist(), tuple(target.classes))


def plane(features: Features) -> list[list[float]]:
    """Return t-SNE's places `[images][2]` of features, the same in every run on one machine.

    Reference: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    from sklearn.manifold import TSNE

    values = features.double().numpy()
    found = TSNE(
        perplexity=min(_PERPLEXITY, (len(values) - 1) / 3),
        init="pca",
        learning_rate="auto",
        random_state=0,
        n_jobs=1,
    ).fit_transform(values)
    return np.asarray(found, dtype=float).tolist()


def hscore(features: Features, labels: Sequence[int]) -> float:
    """Return how well the classes are separated in the features themselves, from 0 to 1."""
    return float(registry.build("metrics", "hscore")(features, torch.tensor(labels)))


def _choose(
    store: Store, *, method: Sequence[str], task: str | None, seed: int | None
) -> tuple[Cell, dict[str, Any]]:
    """Return a run that combined: rather one of hgprompt, rather one with few classes."""
    best, found = (-1, -1), None
    for cell, record in store.select(methods=method or None, task=task, seed=seed):
        if record["command"] != "combine":
            continue
        ours = registry.parse(record["method"]).name == "hgprompt"
        liked = (int(ours), int(record["task"]["num_classes"] <= MOST_CLASSES))
        if liked > best:
            best, found = liked, (cell, record)
    if found is None:
        raise VPromptError(
            f"No finished run in {store.folder} that was asked for combines sources, so there is "
            "no weighted sum to look at."
        )
    return found


def _job_of(store: Store, cell: Cell, data: Path | None, device: str) -> Job:
    """Return what the run was told, and check that images and pool are still the same."""
    recipe = store.recipe()
    tasks = [task for task in recipe.tasks if task.name == cell.task]
    sources = recipe.sources
    if sources is not None and sources.tasks is None:
        sources = sources.model_copy(update={"tasks": recipe.tasks})
    own = recipe.model_copy(update={"tasks": tasks, "sources": sources})
    for job in expand(own, data=data, output=store.folder, device=device):
        if job.id == cell.id:
            return job
    raise VPromptError(
        f"The images of {cell.task!r} or the pool are not those of the run {cell.id} any more, so "
        "its features cannot be made again. Give the same --data, in the folder where it was run."
    )


def _prompts(
    job: Job, record: dict[str, Any], backbone: Backbone
) -> tuple[dict[str, Prompt], Prompt]:
    """Return the prompts of a run's sources, by name, and the sum that it made of them."""
    described = record["transfer"]["sources"]
    pooled = {each.name: each for each in pool.load(job.pools, backbone, exclude=job.exclude)}
    for each in described:
        source = pooled.get(each["name"])
        if source is None or source.digest != each["digest"]:
            raise VPromptError(
                f"The pool's {each['name']!r} is not the prompt that was combined. Look for the "
                f"one with the digest {each['digest'][:12]}, or run the benchmark again."
            )
    sources = [pooled[each["name"]] for each in described]
    prompts, slots, _ = combining.align_sources(sources, record["align"])
    if "moves" in record:
        moves, _ = origin.moves_of(sources, backbone, slots)
        given = record["moves"]["coefficients"]
        coefficients = torch.tensor([given[name] for name in moves.names], dtype=torch.float64)
        by_name = {s.name: prompt for s, prompt in zip(sources, prompts, strict=True)}
        return by_name, moves.sum(coefficients)
    # A method may give a source one weight or one for every block, then `[blocks, sources]`.
    shares = torch.tensor(
        [each.get("layer_weights") or each["weight"] for each in described], dtype=torch.float64
    )
    shares = shares.T if shares.ndim == 2 else shares
    total = compose.combine(slots, shares, scale=record["scale"])
    return {source.name: prompt for source, prompt in zip(sources, prompts, strict=True)}, total


def _pick(record: dict[str, Any], asked: Sequence[str]) -> list[str]:
    """Return the names of the sources to show: those asked for, or the heaviest."""
    sources = sorted(record["transfer"]["sources"], key=lambda each: -each["weight"])
    names = [each["name"] for each in sources]
    check_known("source", asked, names)
    return [*asked] or names[:SHOWN]
