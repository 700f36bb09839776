"""Flow: the main lines of the verbs; the only place that knows the order of the stages."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vprompt import artifact, cards, compose, measure, pool, registry, runs
from vprompt.adapter import Adapter, PromptAdapter
from vprompt.artifact import Artifact
from vprompt.backbone import Backbone
from vprompt.cost import estimate
from vprompt.errors import VPromptError
from vprompt.evidence import Evidence, gather
from vprompt.files import cache_folder
from vprompt.heads import closed_form
from vprompt.measure import Candidate, Measurement
from vprompt.opening import open_backbone, open_task
from vprompt.precision import resolve
from vprompt.progress import SILENT, Progress
from vprompt.prompt import Prompt
from vprompt.task import Examples, Task
from vprompt.train_config import TrainConfig
from vprompt.tune import Tuned, tune
from vprompt.types import Weights


@dataclass(frozen=True, eq=False)
class Outcome:
    """What learn and combine return: the artefact, its measurements, and the full record."""

    artifact: Artifact
    test: dict[str, Measurement]
    run: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Setting:
    """What both main lines start from: a frozen model and the images it will see."""

    backbone: Backbone
    task: Task
    train: Examples
    val: Examples | None
    config: TrainConfig
    clock: runs.Clock
    progress: Progress
    skip_bad: bool


def learn(
    task: str | Task,
    *,
    model: str | Backbone = "demo",
    method: str = "vpt",
    config: TrainConfig | None = None,
    grid: Mapping[str, Sequence[float]] | None = None,
    shots: int | None = None,
    draw: int = 0,
    train_on: str = "train",
    image_size: int | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    test: bool = True,
    device: str = "auto",
    skip_bad: bool = False,
    allow_absent: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """Learn a prompt and a head for a task on a frozen backbone.

    `method` is a plug-in of `adapters/` with its settings, `grid` names values of the training
    settings to choose from on validation (ties: the smaller rate). `shots` draws that many images
    per class with the seed `draw`. `train_on="trainval"` adds the validation images, so nothing is
    left to choose by and the last epoch is kept. `test=False` leaves the test split closed.
    """
    _check_output(output, overwrite)
    backbone = open_backbone(model, image_size=image_size, device=device)
    build = registry.build("adapters", method)
    opened = open_task(task, allow_absent=allow_absent)
    setting = _prepare(
        backbone,
        opened,
        config,
        shots,
        draw,
        train_on=train_on,
        skip_bad=skip_bad,
        progress=progress,
    )
    progress.say(estimate(build(backbone), setting.train, setting.config, grid=_size(grid)))
    tuned, chosen = _tune_best(setting, lambda: build(backbone), grid or {})
    plain = _plain(setting)
    with setting.clock.stage("head"):
        baseline = closed_form(plain, setting.train.labels, len(setting.task.classes))
    candidates: dict[str, Candidate] = {"no prompt": (None, baseline)}
    run = {
        "command": "learn",
        "method": str(registry.parse(method)),
        "settings": registry.complete("adapters", method),
        "prompt_init": _prompt_init(method),
        "train": chosen.model_dump(),
        "grid": {name: list(values) for name, values in (grid or {}).items()},
        "train_on": train_on,
    }
    return _finish(setting, tuned, chosen, plain, candidates, run, output, overwrite, test)


def combine(
    task: str | Task,
    *,
    pool_folder: Path | str,
    method: str = "hgprompt",
    model: str | Backbone | None = None,
    config: TrainConfig | None = None,
    shots: int | None = None,
    draw: int = 0,
    exclude: tuple[str, ...] = (),
    align: str = "auto",
    scale: str = "auto",
    output: Path | str | None = None,
    overwrite: bool = False,
    test: bool = True,
    device: str = "auto",
    force: bool = False,
    skip_bad: bool = False,
    allow_absent: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """Weigh a pool's prompts for a new task, add them up, and tune the sum with a new head.

    `method` is a plug-in of `transfer/`. `align` is `none`, `hungarian`, or `auto`: match tokens
    unless all sources grew from one initialisation. `scale` is one of `compose.SCALES`.
    """
    _check_output(output, overwrite)
    weigh = registry.build("transfer", method)
    backbone = open_pool_backbone(pool_folder, model, device=device)
    sources = pool.load(pool_folder, backbone, exclude=exclude, force=force)
    opened = open_task(task, allow_absent=allow_absent)
    setting = _prepare(backbone, opened, config, shots, draw, skip_bad=skip_bad, progress=progress)
    aligned = _aligned(sources, align)
    prompts = [prompt for prompt, _ in aligned]
    with setting.clock.stage("evidence"):
        evidence = _evidence(setting, sources, gradients=True)
    evidence = evidence.permuted([order for _, order in aligned])
    with setting.clock.stage("weigh"):
        weights = weigh(evidence)
    start = compose.combine(prompts, weights, scale=scale)
    with setting.clock.stage("starts"):
        starts = _starts(setting, evidence, prompts, weights, start, scale)
    chosen = setting.config
    progress.say(estimate(PromptAdapter(backbone, start), setting.train, chosen))
    with setting.clock.stage("tune"):
        tuned = _tune(setting, PromptAdapter(backbone, start), chosen)
    run = {
        "command": "combine",
        "method": str(registry.parse(method)),
        "settings": registry.complete("transfer", method),
        "pool": str(pool_folder),
        "align": align,
        "scale": scale,
        "train": chosen.model_dump(),
        "transfer": _describe_transfer(sources, evidence, weights, start),
        "starts": {name: facts for name, (_, facts) in starts.items()},
        "prompt_init": None,
    }
    candidates = {name: candidate for name, (candidate, _) in starts.items()}
    return _finish(setting, tuned, chosen, evidence.plain, candidates, run, output, overwrite, test)


def score(
    task: str | Task,
    *,
    pool_folder: Path | str,
    metric: str = "hscore",
    model: str | Backbone | None = None,
    shots: int | None = None,
    draw: int = 0,
    exclude: tuple[str, ...] = (),
    device: str = "auto",
    force: bool = False,
    skip_bad: bool = False,
    allow_absent: bool = False,
    progress: Progress = SILENT,
) -> list[tuple[str, float]]:
    """Rank a pool for a task without training: `(source, score)`, best first.

    The entry `(no prompt)` is the score of the frozen features, the line a source has to pass.
    """
    metric_of = registry.build("metrics", metric)
    backbone = open_pool_backbone(pool_folder, model, device=device)
    sources = pool.load(pool_folder, backbone, exclude=exclude, force=force)
    opened = open_task(task, allow_absent=allow_absent)
    setting = _prepare(backbone, opened, None, shots, draw, skip_bad=skip_bad, progress=progress)
    evidence = _evidence(setting, sources, gradients=False)
    ranked = [
        (n, metric_of(f, evidence.labels))
        for n, f in zip(evidence.names, evidence.features, strict=True)
    ]
    ranked.append(("(no prompt)", metric_of(evidence.plain, evidence.labels)))
    return sorted(ranked, key=lambda pair: -pair[1])


def open_pool_backbone(
    pool_folder: Path | str, model: str | Backbone | None, *, device: str = "auto"
) -> Backbone:
    """Return the named backbone, or the one that the pool's first usable artefact names."""
    configs = [entry.config for entry in pool.entries(pool_folder) if entry.config is not None]
    if not configs:
        first = pool.entries(pool_folder)[0]
        raise VPromptError(f"No artefact of the pool {pool_folder} can be read. {first.problem}")
    size = int(configs[0]["data_config"]["input_size"][1])
    name = model if model is not None else configs[0]["base_model_name_or_path"]
    return open_backbone(name, image_size=size, device=device)


def _prepare(
    backbone: Backbone,
    task: Task,
    config: TrainConfig | None,
    shots: int | None,
    draw: int,
    *,
    train_on: str = "train",
    skip_bad: bool,
    progress: Progress,
) -> _Setting:
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
    return _Setting(backbone, task, train, val, config or TrainConfig(), clock, progress, skip_bad)


def _tune(setting: _Setting, adapter: Adapter, config: TrainConfig) -> Tuned:
    return tune(
        adapter,
        setting.train,
        setting.val,
        len(setting.task.classes),
        config,
        checkpoint=cache_folder() / "checkpoints",
        progress=setting.progress,
    )


def _tune_best(
    setting: _Setting, build: Any, grid: Mapping[str, Sequence[float]]
) -> tuple[Tuned, TrainConfig]:
    """Train every point of the grid and keep the best on validation; ties go to the smaller lr."""
    if grid and setting.val is None:
        raise VPromptError("A grid is chosen from on validation images, but there are none.")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    trained: list[tuple[tuple[float, float], Tuned, TrainConfig]] = []
    with setting.clock.stage("tune"):
        for point in points:
            config = TrainConfig.model_validate({**setting.config.model_dump(), **point})
            tuned = _tune(setting, build(), config)
            accuracy = tuned.record(tuned.kept_epoch).val_accuracy or 0.0
            trained.append(((accuracy, -config.lr), tuned, config))
            if len(points) > 1:
                setting.progress.say(f"{point}: {tuned.sentence}")
    _, tuned, config = max(trained, key=lambda entry: entry[0])
    return tuned, config


def _evidence(setting: _Setting, sources: Sequence[Artifact], *, gradients: bool) -> Evidence:
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


def _plain(setting: _Setting) -> torch.Tensor:
    """Return the prompt-free features of the training images."""
    with setting.clock.stage("head"):
        return measure.features_of(
            setting.backbone, None, setting.train, precision=setting.config.precision
        )


def _aligned(sources: Sequence[Artifact], align: str) -> list[tuple[Prompt, torch.Tensor]]:
    """Return prompts whose tokens correspond, each with the order its tokens were put in."""
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


def _starts(
    setting: _Setting,
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
        facts = {"hscore": hscore(features, evidence.labels), "cv_accuracy": head.cv_accuracy}
        found[name] = ((prompt, head), {k: v if v == v else None for k, v in facts.items()})
    return found


def _describe_transfer(
    sources: Sequence[Artifact], evidence: Evidence, weights: Weights, start: Prompt
) -> dict[str, Any]:
    """Return weight, score and origin of every source, and how far gradients agree."""
    from vprompt.transfer import _alignment

    hscore = registry.build("metrics", "hscore")
    fused = torch.einsum("s,snh->nh", weights.float(), evidence.features)
    cosines = _alignment.cosine_matrix(evidence.gradients)
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
        "start_digest": artifact.prompt_digest(start),
    }


def _finish(
    setting: _Setting,
    tuned: Tuned,
    config: TrainConfig,
    plain: torch.Tensor,
    candidates: dict[str, Candidate],
    run: dict[str, Any],
    output: Path | str | None,
    overwrite: bool,
    test: bool,
) -> Outcome:
    """Measure on the test split, once, and write artefact, card and record."""
    backbone, prompt = setting.backbone, tuned.adapter.prompt()
    name = "tuned" if run["command"] == "combine" else "learned"
    measured: dict[str, Measurement] = {}
    if test and setting.task.test is not None:
        with setting.clock.stage("test"):
            measured = measure.test_accuracy(
                backbone,
                setting.task,
                {**candidates, name: (prompt, tuned.head)},
                precision=config.precision,
                skip_bad=setting.skip_bad,
                progress=setting.progress,
            )
    rule = "last epoch" if config.keep == "last" or setting.val is None else "best on validation"
    run = {
        **run,
        "task": runs.describe_task(setting.task, {"train": setting.train, "val": setting.val}),
        "backbone": runs.describe_backbone(backbone),
        "tuning": runs.describe_tuning(tuned, rule),
        "test": {key: value.to_json() for key, value in measured.items()},
        "seconds": setting.clock.seconds,
        "machine": runs.describe_machine(
            backbone.device, resolve(config.precision, backbone.device)
        ),
    }
    keys = ("command", "method", "settings", "pool", "train", "train_on", "grid", "align", "scale")
    facts = {
        "prompt_init": run["prompt_init"],
        "task": {"name": setting.task.name, "digest": run["task"]["splits"]["train"]["digest"]},
        "recipe": {key: run[key] for key in keys if key in run},
        "metrics": run["test"].get(name),
    }
    config_json = artifact.make_config(backbone, prompt, setting.task.classes, **facts)
    card = cards.render(config_json, run)
    made = Artifact(prompt, tuned.head, plain.mean(0), config_json, card)
    if output is not None:
        artifact.save(made, Path(output), overwrite=overwrite, run=run)
        made = replace(made, folder=Path(output))
    return Outcome(made, measured, run)


def _prompt_init(method: str) -> dict[str, Any] | None:
    """Say from which initialisation a method's prompt starts, so that pools know what matches."""
    chosen = registry.complete("adapters", method)
    if "prompt_init" not in chosen:
        return None
    return {"kind": chosen["prompt_init"], "seed": chosen["prompt_init_seed"]}


def _check_output(output: Path | str | None, overwrite: bool) -> None:
    """Refuse an existing folder before the work, not after it."""
    if output is not None and Path(output).exists() and not overwrite:
        raise VPromptError(
            f"{output} exists already. Choose another --output, or add --overwrite to replace it."
        )


def _size(grid: Mapping[str, Sequence[float]] | None) -> int:
    size = 1
    for values in (grid or {}).values():
        size *= len(values)
    return size
