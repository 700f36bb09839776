"""Flow: the main lines of the verbs; the only place that knows the order of the stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vprompt import (
    artifact,
    cards,
    catalogue,
    combining,
    comparing,
    compose,
    measure,
    registry,
    runs,
    scoring,
    screening,
    stages,
    starting,
)
from vprompt.adapter import Adapter, PromptAdapter
from vprompt.artifact import Artifact
from vprompt.backbone import Backbone
from vprompt.catalogue import Pool
from vprompt.cost import combining_estimate, training_estimate
from vprompt.errors import VPromptError
from vprompt.heads import closed_form
from vprompt.measure import Candidate, Measurement
from vprompt.opening import open_backbone, open_pool_backbone, open_task
from vprompt.precision import resolve
from vprompt.preprocessing import ImageSize
from vprompt.progress import SILENT, Progress
from vprompt.protocol import Protocol
from vprompt.scoring import Scores
from vprompt.task import Task
from vprompt.train_config import TrainConfig, combining_defaults
from vprompt.tune import Tuned

RULES = {
    "best": "epoch of best validation accuracy, the start included",
    "least_loss": "epoch of least validation loss, none less accurate than the start",
    "last": "last epoch",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What learn and combine return: the artefact, its measurements, and the full record."""

    artifact: Artifact
    test: dict[str, Measurement]
    run: dict[str, Any]


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
    image_size: ImageSize | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    test: bool = True,
    keep_states: bool = False,
    device: str = "auto",
    skip_bad: bool = False,
    allow_absent: bool = False,
    protocol: Protocol | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Learn a prompt and a head for a task on a frozen backbone.

    `method` is a plug-in of `adapters/` with its settings, `grid` names values of the training
    settings to choose from on validation (ties: the smaller rate). `shots` draws that many images
    per class with the seed `draw`. `train_on="trainval"` adds the validation images, so nothing is
    left to choose by and the last epoch is kept. `test=False` leaves the test split closed.
    `keep_states` keeps the state of the finished training in the cache, so that an equal one costs
    nothing.
    `protocol` sets nothing: it is recorded, with every point in which the run departs from it.
    """
    _check_output(output, overwrite)
    build = registry.build("adapters", method)
    config = config or TrainConfig.checked(stages.training_defaults(method))
    points = stages.grid_points(config, grid or {})
    backbone = open_backbone(model, image_size=image_size, device=device, progress=progress)
    opened = open_task(task, allow_absent=allow_absent)
    setting = stages.prepare(
        backbone,
        opened,
        config,
        shots,
        draw,
        train_on=train_on,
        skip_bad=skip_bad,
        keep_states=keep_states,
        progress=progress,
    )
    trial, looks = build(backbone), setting.sizes(test)
    progress.say(
        training_estimate(trial, setting.train, setting.config, points=len(points), **looks)
    )
    tuned, chosen, reached = stages.tune_best(setting, lambda: build(backbone), points)
    plain = stages.plain_features(setting)
    with setting.clock.stage("head"):
        baseline = closed_form(plain, setting.train.labels, len(setting.task.classes))
    candidates: dict[str, Candidate] = {"no prompt": (None, baseline)}
    if tuned.adapter.text() is not None:
        candidates = {"zero-shot": (None, stages.zero_shot_head(setting)), **candidates}
    run: dict[str, Any] = {
        "command": "learn",
        "method": str(registry.parse(method)),
        "settings": registry.complete("adapters", method),
        "prompt_init": _prompt_init(method, tuned.adapter),
        "train": chosen.model_dump(),
        "grid": {name: list(values) for name, values in (grid or {}).items()},
        "grid_reached": reached if grid else [],
        "train_on": train_on,
        "protocol": protocol,
    }
    return _finish(setting, tuned, chosen, plain, candidates, run, output, overwrite, test)


def combine(
    task: str | Task,
    *,
    pool_folder: Pool,
    method: str = "hgprompt",
    model: str | Backbone | None = None,
    config: TrainConfig | None = None,
    shots: int | None = None,
    draw: int = 0,
    train_digest: str | None = None,
    exclude: tuple[str, ...] = (),
    screen: str = "auto",
    include_self: bool = False,
    align: str | None = None,
    scale: str | None = None,
    safeguard: bool | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    test: bool = True,
    keep_states: bool = False,
    device: str = "auto",
    force: bool = False,
    skip_bad: bool = False,
    allow_absent: bool = False,
    protocol: Protocol | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Weigh a pool's prompts for a new task, add them up, and tune the sum with a new head.

    `method` is a plug-in of `transfer/`. Sources that were learned on the target itself, a task of
    its name and classes, are left out unless `include_self`. `align` is `none`, `hungarian`,
    `auto` (match tokens unless all sources grew from one initialisation), or `placement`: bring
    deep prompts of different placements to one first. `scale` is one of `compose.SCALES`. With
    `safeguard`, tuning starts from the mix, unless the plain average or the best single source
    has a clearly smaller cross-validated loss on the training images. Left out, the three are as
    the method asks; `config` too, and `protocol` is as for `learn`.
    Training images of another digest than `train_digest` are refused. `screen` says how a large
    pool is screened first (`screening.Screen`): `auto`, `auto(keep=16)` or `off`.
    """
    _check_output(output, overwrite)
    weigh = registry.build("transfer", method)
    plan = combining.plan_of(method, align=align, scale=scale, safeguard=safeguard)
    backbone = open_pool_backbone(
        pool_folder, model, exclude=exclude, device=device, progress=progress
    )
    opened = open_task(task, allow_absent=allow_absent)
    selection = screening.select(
        pool_folder,
        backbone,
        None if include_self else opened,
        screen,
        exclude=exclude,
        force=force,
        align="none" if plan.target_epochs else plan.align,
        progress=progress,
    )
    config = config or TrainConfig.checked(combining_defaults(method))
    setting = stages.prepare(
        backbone,
        opened,
        config,
        shots,
        draw,
        digest=train_digest,
        skip_bad=skip_bad,
        keep_states=keep_states,
        progress=progress,
    )
    sources, screened = screening.finish(selection, setting, adds_up=True)
    prompts, slots, moved = combining.align_sources(sources, plan.align)
    trial, looks = PromptAdapter(backbone, prompts[0]), setting.sizes(test)
    counts = {"sources": len(sources), **looks}
    progress.say(combining_estimate(trial, setting.train, setting.config, plan=plan, **counts))
    with setting.clock.stage("evidence"):
        evidence = combining.gather_evidence(setting, sources, prompts, plan, slots)
    with setting.clock.stage("weigh"):
        mix, twins = combining.weigh_sources(weigh, method, evidence, merge_twins=plan.merge_twins)
    kept = combining.kept_rows(evidence, twins)
    for sentence in combining.remarks(mix, twins, evidence):
        progress.say(sentence)
    scale = plan.scale
    if scale == "auto" and not backbone.centres_tokens:
        scale = "token_norm"  # `ln` shifts tokens, which only a LayerNorm does not notice
    weights = mix.weights
    if plan.refine:
        with setting.clock.stage("refine"):
            weights = combining.refine(setting, slots, mix, kept, scale, plan.refine)
    start = compose.combine(slots, combining.shares(mix, weights, slots), scale=scale)
    with setting.clock.stage("starts"):
        starts = combining.make_starts(
            setting, evidence, prompts, slots, weights, start, scale, kept
        )
    chosen = setting.config
    begin = combining.safest_start(starts) if plan.safeguard else combining.MIXED
    (first, _), _ = starts[begin]
    assert first is not None
    with setting.clock.stage("tune"):
        given = replace(mix, weights=weights)
        adapter, given, own = starting.adapter_of(setting, method, sources, prompts, first, given)
        tuned = stages.run_tuning(setting, adapter, chosen)
    weights = starting.final_weights(tuned, given.weights)
    mix = replace(mix, facts=given.facts)
    run: dict[str, Any] = {
        "command": "combine",
        "method": str(registry.parse(method)),
        "settings": registry.complete("transfer", method),
        "pool": catalogue.describe(pool_folder),
        "align": plan.align,
        "scale": scale,
        "safeguard": plan.safeguard,
        "include_self": include_self,
        "train": chosen.model_dump(),
        **({} if screened is None else {"screening": screened}),
        "transfer": runs.describe_transfer(sources, evidence, mix, twins, weights, start),
        "aligned": moved,
        "started_from": f"as {registry.parse(method).name} does" if own else begin,
        "starts": {name: facts for name, (_, facts) in starts.items()},
        "prompt_init": None,
        "protocol": protocol,
        "backbone": runs.describe_backbone(backbone),
    }
    drawn = {"shots": shots, "draw": draw, "digest": f"sha256:{setting.train.digest}"}
    run["replay"] = runs.replay(run, task if isinstance(task, str) else None, drawn, sources)
    candidates = {name: candidate for name, (candidate, _) in starts.items()}
    return _finish(setting, tuned, chosen, evidence.plain, candidates, run, output, overwrite, test)


def score(
    task: str | Task,
    *,
    pool_folder: Pool,
    metric: str | Sequence[str] = "hscore",
    model: str | Backbone | None = None,
    shots: int | None = None,
    draw: int = 0,
    exclude: tuple[str, ...] = (),
    screen: str = "auto",
    source_data: Path | str | None = None,
    device: str = "auto",
    force: bool = False,
    skip_bad: bool = False,
    allow_absent: bool = False,
    progress: Progress = SILENT,
) -> list[tuple[str, float]] | dict[str, Scores]:
    """Rank a pool for a task: `(source, score)`, best first.

    The entry `(no prompt)` is the score of the frozen features, the line a source has to pass; a
    metric of prompts or heads has none. Several metrics give `Scores` each, by name, from one pass
    of the images. `source_data` is a folder of the sources' own tasks, by the names they were
    learned under, for metrics that match source with target. `screen` is as for `combine`, and
    leaves those out of the result. Nothing is trained, but the prompt on the target where a metric
    compares prompts.
    """
    named = [metric] if isinstance(metric, str) else list(metric)
    plan = scoring.plan_of(named)
    backbone = open_pool_backbone(
        pool_folder, model, exclude=exclude, device=device, progress=progress
    )
    selection = screening.select(
        pool_folder, backbone, None, screen, exclude=exclude, force=force, progress=progress
    )
    opened = open_task(task, allow_absent=allow_absent)
    setting = stages.prepare(
        backbone, opened, None, shots, draw, skip_bad=skip_bad, progress=progress
    )
    sources, _ = screening.finish(selection, setting, adds_up=False)
    for sentence in scoring.rare_classes(setting.train.labels):
        progress.say(sentence)
    wanted = {name for each in named for name in scoring.needs(each)}
    own = source_data if wanted & scoring.SOURCE_DATA else None
    candidates = comparing.inputs_of_all(setting, sources, plan, own)
    setting.forget_checkpoints()
    found = {}
    with progress.step("score", len(named)) as step:
        for each in named:
            found[each] = scoring.rank(each, candidates)
            step.advance(1, each)
    if not isinstance(metric, str):
        return found
    reasons = [found[metric].missing[s.name] for s in sources if s.name in found[metric].missing]
    if reasons:
        raise VPromptError(reasons[0])
    return found[metric].ranked


def _finish(
    setting: stages.Setting,
    tuned: Tuned,
    config: TrainConfig,
    plain: torch.Tensor,
    candidates: Mapping[str, Candidate],
    run: dict[str, Any],
    output: Path | str | None,
    overwrite: bool,
    test: bool,
) -> Outcome:
    """Measure on the test split, once, and write artefact, card and record."""
    backbone, prompt, text = setting.backbone, tuned.adapter.prompt(), tuned.adapter.text()
    name = "tuned" if run["command"] == "combine" else "learned"
    measured: dict[str, Measurement] = {}
    if test and setting.task.test is not None:
        with setting.clock.stage("test"):
            measured = measure.test_accuracy(
                backbone,
                setting.task,
                {**candidates, name: (tuned.adapter, tuned.head)},
                precision=config.precision,
                skip_bad=setting.skip_bad,
                progress=setting.progress,
            )
    rule = RULES["last" if setting.val is None else config.keep]
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
    run["protocol"] = run["protocol"] and run["protocol"].record(run)
    keys = ["command", "method", "settings", "pool", "train", "train_on", "grid"]
    keys += ["align", "scale", "safeguard", "replay"]
    facts = {
        "prompt_init": run["prompt_init"],
        "task": {"name": setting.task.name, "digest": run["task"]["splits"]["train"]["digest"]},
        "recipe": {key: run[key] for key in keys if key in run},
        "metrics": run["test"].get(name),
    }
    state = tuned.adapter.state() if prompt is None and text is None else {}
    if state:
        facts["method"] = tuned.adapter.opens_as or run["method"]
    head = tuned.head
    config_json = artifact.make_config(backbone, prompt, setting.task.classes, text, head, **facts)
    card = cards.render(config_json, run)
    made = Artifact(prompt, head, plain.mean(0), config_json, card, state=state, text=text)
    if output is not None:
        artifact.save(made, Path(output), overwrite=overwrite, run=run)
        made = replace(made, folder=Path(output))
    setting.forget_checkpoints()
    return Outcome(made, measured, run)


def _prompt_init(method: str, adapter: Adapter) -> dict[str, Any] | None:
    """Say from which initialisation a method's prompt starts, so that pools know what matches."""
    chosen = registry.complete("adapters", method)
    fresh = chosen.get("prompt_init") and not chosen.get("start")
    if not fresh or not adapter.keeps_places:
        return None
    return {"kind": chosen["prompt_init"], "seed": chosen["prompt_init_seed"]}


def _check_output(output: Path | str | None, overwrite: bool) -> None:
    """Refuse an existing folder before the work, not after it."""
    if output is None:
        return
    if overwrite:
        artifact.check_replaceable(Path(output))
    elif Path(output).exists():
        raise VPromptError(
            f"{output} exists already. Choose another --output, or add --overwrite to replace it."
        )
