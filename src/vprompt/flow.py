"""Flow: the main lines of the verbs; the only place that knows the order of the stages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vprompt import stages
from vprompt.artifacts import catalogue, origin
from vprompt.artifacts.catalogue import Pool
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.data.preprocessing import ImageSize
from vprompt.data.task import Task
from vprompt.learning import fleets
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.classifier import Candidate
from vprompt.learning.train_config import TrainConfig, combining_defaults
from vprompt.models.backbone import Backbone
from vprompt.models.heads import closed_form
from vprompt.opening import open_backbone, open_pool_backbone, open_task
from vprompt.outcome import Outcome, check_output, finish, prompt_init
from vprompt.pooling import combining, comparing, moving, scoring, screening, starting, summing
from vprompt.pooling.mix import PUBLISHED, plan_of
from vprompt.pooling.scoring import Scores
from vprompt.results import runs
from vprompt.results.cost import combining_estimate, training_estimate
from vprompt.results.protocol import Protocol


def learn(
    task: str | Task,
    *,
    model: str | Backbone = "demo",
    method: str = "vpt",
    config: TrainConfig | None = None,
    grid: Mapping[str, Sequence[float]] | None = None,
    halving: bool = False,
    fleet: str | int = "auto",
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
    settings to choose from on validation (ties: the smaller rate); `halving` drops points that lie
    behind on the way, and `fleet` says how many advance together. `shots` draws that many images
    per class with the seed `draw`. `train_on="trainval"` adds the validation images, so nothing is
    left to choose by and the last epoch is kept. `test=False` leaves the test split closed.
    `keep_states` keeps the state of the finished training in the cache, so that an equal one costs
    nothing.
    `protocol` sets nothing: it is recorded, with every point in which the run departs from it.
    """
    output = check_output(output, overwrite)
    build = registry.build("adapters", method)
    config = config or TrainConfig.checked(stages.training_defaults(method))
    points = stages.grid_points(config, grid or {})
    fleets.check(fleet)
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
        training_estimate(
            trial, setting.train, setting.config, points=len(points), halving=halving, **looks
        )
    )
    tuned, chosen, reached = stages.tune_best(
        setting, lambda: build(backbone), points, fleet=fleet, halving=halving
    )
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
        "prompt_init": prompt_init(method, tuned.adapter),
        "train": chosen.model_dump(),
        "grid": {name: list(values) for name, values in (grid or {}).items()},
        "grid_reached": reached if grid else [],
        "train_on": train_on,
        "protocol": protocol,
    }
    return finish(setting, tuned, chosen, plain, candidates, run, output, overwrite, test)


def combine(
    task: str | Task,
    *,
    pool_folder: Pool,
    method: str = "moves",
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
    move_scale: str | float | None = None,
    form: str | None = None,
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
    has a clearly smaller cross-validated loss on the training images. `move_scale` is `published`
    (weights of sum 1), `auto` (a sum of moves, at the scale that the training images choose) or a
    number; `form` is what the sum of moves becomes, one of `mix.FORMS`. Left out, the five are as
    the method asks; `config` too, and `protocol` is as for `learn`.
    Training images of another digest than `train_digest` are refused. `screen` says how a large
    pool is screened first (`screening.Screen`): `auto`, `auto(keep=16)` or `off`.
    """
    output = check_output(output, overwrite)
    weigh = registry.build("transfer", method)
    plan = plan_of(
        method,
        align=align,
        scale=scale,
        safeguard=safeguard,
        move_scale=move_scale,
        form=form,
    )
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
    config = config or TrainConfig.checked(combining_defaults(method, plan.form))
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
    moves = None
    if plan.move_scale != PUBLISHED:
        with setting.clock.stage("moves"):
            found = moving.measure_moves(sources, setting, slots, progress)
        if found is None:
            plan = replace(plan, move_scale=PUBLISHED, form="sum")
        else:
            moves, rows = found
            sources, prompts, slots = (
                [sources[row] for row in rows],
                [prompts[row] for row in rows],
                [slots[row] for row in rows],
            )
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
    if moves is None:
        begin = summing.published(
            setting, method, sources, prompts, slots, evidence, mix, plan, kept
        )
    else:
        begin = summing.moved(setting, method, sources, prompts, moves, evidence, mix, plan, kept)
    with setting.clock.stage("tune"):
        tuned = stages.run_tuning(setting, begin.adapter, setting.config)
    weights = starting.final_weights(tuned, begin.weights)
    mix = replace(mix, facts=begin.mix.facts)
    run: dict[str, Any] = {
        "command": "combine",
        "method": str(registry.parse(method)),
        "settings": registry.complete("transfer", method),
        "pool": catalogue.describe(pool_folder),
        "align": plan.align,
        "scale": begin.scale,
        "move_scale": plan.move_scale,
        "form": plan.form,
        "safeguard": plan.safeguard,
        "include_self": include_self,
        "train": setting.config.model_dump(),
        **({} if screened is None else {"screening": screened}),
        "transfer": runs.describe_transfer(sources, evidence, mix, twins, weights, begin.mixed),
        **({} if begin.moves is None else {"moves": begin.moves}),
        "aligned": moved,
        "started_from": begin.name,
        "starts": {name: facts for name, (_, facts) in begin.candidates.items()},
        "prompt_init": origin.shared_init(sources),
        "protocol": protocol,
        "backbone": runs.describe_backbone(backbone),
    }
    drawn = {"shots": shots, "draw": draw, "digest": f"sha256:{setting.train.digest}"}
    run["replay"] = runs.replay(run, task if isinstance(task, str) else None, drawn, sources)
    candidates = {name: candidate for name, (candidate, _) in begin.candidates.items()}
    return finish(
        setting,
        tuned,
        setting.config,
        evidence.plain,
        candidates,
        run,
        output,
        overwrite,
        test,
        begin.origin,
    )


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
