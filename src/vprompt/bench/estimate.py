"""Estimate: how many images go through the network, how long that takes, and in how much memory.

Counted per run: images that go forward and backward, and images that go forward alone, which cost
a third. The rest (solvers, heads, disk) is small beside them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vprompt.artifacts import artifact, pool
from vprompt.bench.jobs import Job
from vprompt.bench.recipe import BenchRecipe
from vprompt.bench.work import load_backbone
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.forecast import words
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter, FeatureAdapter, PromptAdapter
from vprompt.learning.fleet_size import bytes_per_image
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone
from vprompt.pooling.mix import PUBLISHED, plan_of
from vprompt.results.cost import (
    FORWARD_SHARE,
    SCALES,
    forward_per_second,
    images_per_second,
    judged,
)

TRIAL_IMAGES = 16
_EACH = 1.0  # seconds of a run beside its images: heads, weights, record
FEATURES_ONLY = ("linear", "mlp")  # never look into the backbone: its features are computed once
COMBINE = "combine"  # the kind of every method that tunes a sum
STAND_IN = "vpt(num_virtual_tokens=1, deep=False)"  # timed in place of those
_SAME_COST = (
    "prompt_init",
    "prompt_init_seed",
    "init_seed",
    "seed",
)  # settings that change no time


@dataclass(frozen=True)
class Passes:
    """Images through the network: `both` ways, and `forward` alone."""

    both: int = 0
    forward: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        """Add up."""
        return Passes(self.both + other.both, self.forward + other.forward)

    @property
    def steps(self) -> float:
        """The same work in images that go both ways."""
        return self.both + FORWARD_SHARE * self.forward


@dataclass(frozen=True)
class Trial:
    """What one small step of a kind of adapter showed, and a pass without a backward one."""

    images_per_second: float
    forward_per_second: float
    bytes_per_image: float


@dataclass(frozen=True)
class Announced:
    """What is said of a benchmark before it starts, and the seconds in it, where they are known."""

    sentences: tuple[str, ...] = ()
    seconds: float = 0.0


def announced(
    recipe: BenchRecipe, jobs: Sequence[Job], *, dry_run: bool, speed: float | None = None
) -> Announced:
    """Return how long the jobs will take and in how much memory.

    A dry run loads only backbones that need no download; for others it says the time as a formula.
    """
    if not jobs:
        return Announced()
    passes = count(jobs)
    if dry_run and (speed is not None or not _at_hand(recipe.backbone.model)):
        return Announced((formula(total(passes), speed),))
    backbone = load_backbone(jobs[0].model, jobs[0].image_size, jobs[0].device)
    learned = None if recipe.sources is None else recipe.sources.learn
    found, problems = trials(jobs, backbone, learned)
    if not found:
        return Announced(tuple(problems))
    speeds = [trial.images_per_second for trial in found.values()]
    batch = max(TrainConfig.checked(job.train).batch_size for job in jobs)
    expected = seconds(passes, found) + _EACH * len(jobs)
    return Announced(
        (
            f"about {words(expected)} on {backbone.device}: {total(passes).both:,.0f} "
            f"images forward and backward, {total(passes).forward:,.0f} forward alone, at "
            f"{min(speeds):.0f} to {max(speeds):.0f} images/s a training step",
            f"about {memory(backbone, found, batch) / 1e9:.1f} GB: the weights, and what a step of "
            f"{batch} images keeps; Python and its libraries come on top",
            *problems,
        ),
        expected,
    )


def count(jobs: Iterable[Job]) -> dict[str, Passes]:
    """Return the passes of all jobs by kind of adapter; what the cache keeps is counted once."""
    found: dict[str, Passes] = {}
    kept = _Kept()
    for job in jobs:
        passes = _combining(job, kept) if job.command == "combine" else _learning(job, kept)
        if job.command == "search":
            passes += _searching(job)
        found[kind_of(job)] = found.get(kind_of(job), Passes()) + passes
    return found


def kind_of(job: Job) -> str:
    """Return what determines the time of one step: the adapter, without seeds and the like."""
    if job.command == "combine":
        return COMBINE
    spec = registry.parse(job.spec)
    kept = {key: value for key, value in spec.settings.items() if key not in _SAME_COST}
    return str(registry.Spec(spec.name, kept))


def trials(
    jobs: Sequence[Job], backbone: Backbone, learned: str | None
) -> tuple[dict[str, Trial], list[str]]:
    """Time one small step for every kind of adapter among the jobs, and say what cannot be timed.

    `learned` is the method of the sources where the pool is not there yet.
    """
    found, problems = {}, []
    for kind, job in {kind_of(job): job for job in jobs}.items():
        try:
            adapter = _adapter(kind, job, backbone, learned)
            if isinstance(adapter, FeatureAdapter):
                adapter = registry.build("adapters", STAND_IN)(backbone)
            found[kind] = _try(adapter, TrainConfig.checked(job.train))
        except VPromptError as error:  # its runs will fail; the others need not
            problems.append(f"{kind} cannot be built: {error}")
    return found, problems


def seconds(passes: Mapping[str, Passes], found: Mapping[str, Trial]) -> float:
    """Return how long all passes take at the speed of the trials; of other kinds, nothing."""
    return sum(
        passes[kind].both / trial.images_per_second
        + passes[kind].forward / trial.forward_per_second
        for kind, trial in found.items()
    )


def memory(backbone: Backbone, found: Mapping[str, Trial], batch: int) -> float:
    """Return bytes: the weights, and what the widest training step keeps for its backward pass."""
    weights = sum(p.numel() * p.element_size() for p in backbone.parameters())
    return weights + batch * max(trial.bytes_per_image for trial in found.values())


def total(passes: Mapping[str, Passes]) -> Passes:
    """Return the passes of all kinds together."""
    return sum(passes.values(), Passes())


def formula(work: Passes, speed: float | None = None) -> str:
    """Return hours as a function of a device's speed, and their number where the speed is given."""
    text = (
        f"hours = {work.steps:,.0f} / (3600 x images per second of a training step): "
        f"{work.both:,.0f} images forward and backward, {work.forward:,.0f} forward alone, which "
        "cost a third"
    )
    return text if speed is None else f"{work.steps / speed / 3600:.1f} h at {speed:g}/s; {text}"


def _at_hand(model: str) -> bool:
    name = registry.parse(model).name if registry.is_spec(model) else model
    return name != "timm_vit" and name in registry.names("backbones")


class _Kept:
    """Remembers which features of which images were counted before."""

    def __init__(self) -> None:
        self.seen: set[tuple[Any, ...]] = set()

    def once(self, images: int, *key: Any) -> int:
        """Return the number of images the first time, and 0 after that."""
        if key in self.seen or not images:  # a closed test split is not one that was looked at
            return 0
        self.seen.add(key)
        return images


def _learning(job: Job, kept: _Kept) -> Passes:
    train, val, test = (job.counts[name] for name in ("train", "val", "test"))
    config = TrainConfig.checked(job.train)
    forward = _plain(job, kept)
    if registry.parse(job.spec).name in FEATURES_ONLY:
        again = 0 if config.augment == "none" else config.epochs * train  # cut anew every time
        return Passes(0, forward + again + kept.once(val, "val", *_images(job)))
    return Passes(config.epochs * train, forward + train + judged(config) * val + test)


def _searching(job: Job) -> Passes:
    """Count alpha's batches as images that go both ways, and all shots as training the prompts."""
    config = TrainConfig.checked(job.options["search_train"])
    steps = math.ceil(job.counts["train"] / config.batch_size)
    alpha = registry.complete("adapters", job.spec)["alpha_batch"]
    return Passes(config.epochs * (job.counts["train"] + steps * alpha), 0)


def _combining(job: Job, kept: _Kept) -> Passes:
    train, val, test = (job.counts[name] for name in ("train", "val", "test"))
    plan = plan_of(job.spec, **job.options)
    config = TrainConfig.checked(job.train)
    epochs = plan.epochs(config.epochs, job.counts["sources"])
    both, forward = epochs * train, judged(config, epochs) * val + _plain(job, kept)
    evidence = kept.once(job.counts["sources"] * train, plan.gradient_head, *_images(job))
    both += 0 if plan.gradient_head is None else evidence
    forward += evidence if plan.gradient_head is None else 0
    if registry.parse(job.spec).name != "uniform":  # whose sum is the plain average
        forward += train + test  # the sum, untuned
    if plan.move_scale != PUBLISHED:
        parts = plan.members if plan.form in ("ensemble", "distil") else 2
        forward += (SCALES + parts) * train + parts * test
    forward += kept.once(train, "uniform", *_images(job))
    forward += test + kept.once(2 * test, "uniform and best single", job.task)
    return Passes(both, forward)


def _plain(job: Job, kept: _Kept) -> int:
    """Count the features without a prompt, of training and test images."""
    train = kept.once(job.counts["train"], "train", *_images(job))
    return train + kept.once(job.counts["test"], "test", job.task)


def _images(job: Job) -> tuple[Any, ...]:
    """Return what determines the images that a job learns from and chooses by."""
    return job.task, job.train_on, job.seed if job.shots else None


def _adapter(kind: str, job: Job, backbone: Backbone, learned: str | None) -> Adapter:
    if kind == COMBINE and learned is None:
        held = (entry for entry in pool.entries(job.pools) if not entry.promptless)
        prompts = (artifact.load(entry.folder).prompt for entry in held)
        return PromptAdapter(backbone, next(p for p in prompts if p is not None))
    spec = learned if kind == COMBINE and learned is not None else kind
    adapter: Adapter = registry.build("adapters", spec)(backbone)
    return adapter


def _try(adapter: Adapter, config: TrainConfig) -> Trial:
    """Time a step on grey images, and add up what its forward pass keeps for the backward one."""
    height, width = adapter.backbone.data_config.input_size[1:]
    pixels = np.full((TRIAL_IMAGES, height, width, 3), 128, dtype=np.uint8)
    examples = Examples(pixels, torch.zeros(TRIAL_IMAGES, dtype=torch.int64), "trial")
    return Trial(
        images_per_second(adapter, examples, config),
        forward_per_second(adapter, examples, config),
        bytes_per_image(adapter, examples, config),
    )
