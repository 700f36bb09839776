"""Stages: the pieces that the verbs share, each a step of a main line in `flow.py`."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vprompt import compose, measure, registry, runs
from vprompt.adapter import Adapter
from vprompt.artifact import Artifact, prompt_digest
from vprompt.backbone import Backbone
from vprompt.checkpoint import Checkpoint
from vprompt.errors import VPromptError
from vprompt.evidence import Evidence, gather
from vprompt.files import cache_folder
from vprompt.heads import closed_form
from vprompt.linalg import cosine_matrix
from vprompt.measure import Candidate
from vprompt.progress import Progress
from vprompt.prompt import Prompt
from vprompt.task import Examples, Task
from vprompt.train_config import TrainConfig
from vprompt.tune import Tuned, tune
from vprompt.types import Features, Weights


@dataclass(frozen=True, eq=False)
class Setting:
    """What both main lines start from: a frozen model and the images it will see."""

    backbone: Backbone
    task: Task
    train: Examples
    val: Examples | None
    config: TrainConfig
    clock: runs.Clock
    progress: Progress
    skip_bad: bool
    checkpoints: list[Checkpoint] = field(default_factory=list)

    def forget_checkpoints(self) -> None:
        """Drop the states of finished training runs, once their result is safe."""
        for checkpoint in self.checkpoints:
            checkpoint.remove()


def prepare(
    backbone: Backbone,
    task: Task,
    config: TrainConfig | None,
    shots: int | None,
    draw: int,
    *,
    train_on: str = "train",
    skip_bad: bool,
    progress: Progress,
) -> Setting:
    """Draw the few shots, decode the images, and start the clock."""
    task = task if shots is None else task.few_shot(shots, draw)
    if train_on not in ("train", "trainval"):
        raise VPromptError(f"train_on is `train` or `trainval`, but got {train_on!r}.")
    if train_on == "trainval" and task.val is not None:
        task = replace(task, train=task.train + task.val, val=None)
    clock = runs.Clock()
    with clock.stage("images"):
        ready = functools.partial(
            task.examples, config=backbone.data_config, skip_bad=skip_bad, progress=progress
        )
        train = ready(task.train)
        val = None if task.val is None else ready(task.val)
    skipped = len(task.train) - len(train) + (len(task.val or ()) - len(val or ()))
    if skipped:
        progress.say(f"left out {skipped} unreadable images")
        _check_no_class_lost(task, train)
        task = replace(task, facts={**task.facts, "skipped_unreadable": skipped})
    return Setting(backbone, task, train, val, config or TrainConfig(), clock, progress, skip_bad)


def _check_no_class_lost(task: Task, train: Examples) -> None:
    lost = sorted(task.train.labels_present - set(train.labels.tolist()))
    if lost:
        raise VPromptError(
            f"After leaving out unreadable images, no training image of {task.classes[lost[0]]!r} "
            "is left. Mend its files, or remove the class."
        )


def run_tuning(setting: Setting, adapter: Adapter, config: TrainConfig) -> Tuned:
    """Train, with a checkpoint in the cache that the same run finds again."""
    tuned = tune(
        adapter,
        setting.train,
        setting.val,
        len(setting.task.classes),
        config,
        checkpoint=cache_folder() / "checkpoints",
        progress=setting.progress,
    )
    setting.checkpoints.append(tuned.checkpoint)
    return tuned


def check_weights(weights: Weights, method: str, sources: int) -> Weights:
    """Refuse what a plug-in returned unless it is one share per source."""
    sound = weights.shape == (sources,) and bool(torch.isfinite(weights).all())
    if not sound or bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise VPromptError(
            f"{method} returned the weights {weights.tolist()}, but there must be one for each of "
            f"{sources} sources, none negative, with sum 1."
        )
    return weights


def grid_points(config: TrainConfig, grid: Mapping[str, Sequence[float]]) -> list[TrainConfig]:
    """Return the training settings at every point of a grid; without a grid, the settings."""
    for name, values in grid.items():
        if not values:
            raise VPromptError(f"The grid names no values for {name!r}. Write `{name}=0.01,0.03`.")
    return [
        TrainConfig.checked({**config.model_dump(), **dict(zip(grid, values, strict=True))})
        for values in itertools.product(*grid.values())
    ]


def tune_best(
    setting: Setting, build: Callable[[], Adapter], points: Sequence[TrainConfig]
) -> tuple[Tuned, TrainConfig, list[dict[str, Any]]]:
    """Train at every point and keep the best on validation; ties go to the smaller lr.

    Also returns what every point reached.
    """
    if len(points) > 1 and setting.val is None:
        raise VPromptError("A grid is chosen from on validation images, but there are none.")
    trained: list[tuple[tuple[float, float], Tuned, TrainConfig]] = []
    with setting.clock.stage("tune"):
        for config in points:
            tuned = run_tuning(setting, build(), config)
            accuracy = tuned.record(tuned.kept_epoch).val_accuracy or 0.0
            trained.append(((accuracy, -config.lr), tuned, config))
            if len(points) > 1:
                setting.progress.say(f"lr {config.lr:g}, {tuned.sentence}")
    _, best, config = max(trained, key=lambda entry: entry[0])
    reached = [{"train": c.model_dump(), "val_accuracy": key[0]} for key, _, c in trained]
    return best, config, reached


def gather_evidence(setting: Setting, sources: Sequence[Artifact], *, gradients: bool) -> Evidence:
    """Pass the training images through every source, or take it from the cache."""
    prompts = {source.name: source.prompt for source in sources if source.prompt is not None}
    return gather(
        setting.backbone,
        prompts,
        setting.train,
        len(setting.task.classes),
        gradients=gradients,
        batch_size=setting.config.batch_size,
        precision=setting.config.precision,
        progress=setting.progress,
    )


def plain_features(setting: Setting) -> Features:
    """Return the prompt-free features of the training images."""
    with setting.clock.stage("head"):
        return measure.features_of(
            setting.backbone, None, setting.train, precision=setting.config.precision
        )


def align_sources(sources: Sequence[Artifact], align: str) -> list[tuple[Prompt, torch.Tensor]]:
    """Return prompts whose tokens correspond, each with the order its tokens were put in.

    `auto` matches tokens unless all sources say that they grew from one initialisation.
    """
    prompts = [source.prompt for source in sources if source.prompt is not None]
    compose.check_same_place(prompts, [source.name for source in sources])
    if align not in ("auto", "none", "hungarian"):
        raise VPromptError(f"align is `auto`, `none` or `hungarian`, but got {align!r}.")
    starts = {str(source.config.get("prompt_init")) for source in sources}
    if align == "hungarian" or (align == "auto" and (len(starts) > 1 or "None" in starts)):
        orders = compose.match_tokens(prompts)
    else:
        orders = [torch.arange(len(prompt.tokens)) for prompt in prompts]
    return [
        (p.with_tokens(p.tokens[order]), order) for p, order in zip(prompts, orders, strict=True)
    ]


def make_starts(
    setting: Setting,
    evidence: Evidence,
    prompts: Sequence[Prompt],
    weights: Weights,
    mixed: Prompt,
    scale: str,
) -> dict[str, tuple[Candidate, dict[str, Any]]]:
    """Give every possible start its closed-form head: no prompt, best single, uniform, the mix."""
    hscore = registry.build("metrics", "hscore")
    singles = [hscore(features, evidence.labels) for features in evidence.features]
    best = max(range(len(singles)), key=singles.__getitem__)
    uniform = torch.full_like(weights, 1 / len(prompts))
    options: dict[str, tuple[Prompt | None, torch.Tensor | None]] = {
        "no prompt": (None, evidence.plain),
        f"best single ({evidence.names[best]})": (prompts[best], evidence.features[best]),
        "uniform, untuned": (compose.combine(prompts, uniform, scale=scale), None),
        "combined, untuned": (mixed, None),
    }
    found = {}
    for name, (prompt, features) in options.items():
        if features is None:
            features = measure.features_of(
                setting.backbone, prompt, setting.train, precision=setting.config.precision
            )
        head = closed_form(features, evidence.labels, len(setting.task.classes))
        facts = {
            "hscore": hscore(features, evidence.labels),
            "cv_accuracy": head.cv_accuracy,
            "cv_loss": head.cv_loss,
        }
        found[name] = ((prompt, head), {k: v if v == v else None for k, v in facts.items()})
    return found


def safest_start(starts: Mapping[str, tuple[Candidate, dict[str, Any]]]) -> str:
    """Return the name of the prompt with the least cross-validated loss; in a tie, the mix."""
    prompts = [name for name, ((prompt, _), _) in starts.items() if prompt is not None]
    losses = {name: starts[name][1]["cv_loss"] for name in prompts}
    if any(loss is None for loss in losses.values()):
        return "combined, untuned"  # nothing could be held out
    return min(reversed(prompts), key=lambda name: losses[name])


def describe_transfer(
    sources: Sequence[Artifact], evidence: Evidence, weights: Weights, start: Prompt
) -> dict[str, Any]:
    """Return weight, score and origin of every source, and how far gradients agree."""
    hscore = registry.build("metrics", "hscore")
    fused = torch.einsum("s,snh->nh", weights.float(), evidence.features)
    cosines = cosine_matrix(evidence.gradients)
    return {
        "sources": [
            {
                "name": source.name,
                "weight": float(weight),
                "hscore": hscore(features, evidence.labels),
                "task": source.config.get("task", {}).get("name"),
                "digest": source.digest,
            }
            for source, weight, features in zip(sources, weights, evidence.features, strict=True)
        ],
        "hscore_plain": hscore(evidence.plain, evidence.labels),
        "hscore_fused": hscore(fused, evidence.labels),
        "gradient_cosines": [[round(float(v), 4) for v in row] for row in cosines],
        "start_digest": prompt_digest(start),
    }
