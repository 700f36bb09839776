"""Flow: the main lines of the verbs; the only place that knows the order of the stages."""

from dataclasses import replace

from vprompt import opening, stages
from vprompt.artifacts import catalogue
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.settings import takes
from vprompt.data.task import Task
from vprompt.learning import folding
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.following import Following
from vprompt.learning.train_config import TrainConfig, combining_defaults
from vprompt.outcome import Outcome, check_output, finish
from vprompt.pooling import comparing, floor, scoring, screening, weighing
from vprompt.pooling.mix import plan_of
from vprompt.pooling.scoring import Scores
from vprompt.pooling.screening import Selection
from vprompt.results import accounts, again
from vprompt.results.cost import combining_estimate, scoring_estimate, training_estimate
from vprompt.stages import Setting
from vprompt.verbs import CombineSettings, LearnSettings, ScoreSettings


@takes(LearnSettings)
def learn(task: str | Task, settings: LearnSettings) -> Outcome:
    """Learn a prompt and a head for a task on a frozen backbone.

    `task` is what `open_task` takes. The outcome has the artefact, the accuracies on the test split
    under `no prompt` and `learned`, and the record. With `output` the artefact is also written.

    Raises VPromptError before any work if the task, the model, the method or a setting cannot be
    used, or if `output` exists.
    """
    check_output(settings.output, settings.overwrite)
    following = Following.checked("learn", settings.method, **settings.follows)
    build = registry.build("adapters", settings.method)
    config = TrainConfig.of(settings.config, stages.training_defaults(settings.method))
    points = stages.grid_points(config, settings.grid or {})
    if settings.folds:
        folding.check(config, halving=settings.halving)
    backbone = opening.open_backbone(
        settings.model,
        image_size=settings.image_size,
        device=settings.device,
        progress=settings.progress,
    )
    setting = stages.prepare(
        backbone,
        opening.open_task(task, **settings.of_task()),
        config,
        settings.shots,
        settings.draw,
        train_on="trainval" if settings.folds else settings.train_on,
        skip_bad=settings.skip_bad,
        keep_states=settings.keep_states,
        progress=settings.progress,
        following=following,
    )
    trial, looks = build(backbone), setting.sizes(settings.test)
    stages.check_takes(trial, setting.task)
    trainings = len(points) * settings.folds + 1 if settings.folds else len(points)
    estimate = training_estimate(
        trial, setting.train, config, points=trainings, halving=settings.halving, **looks
    )
    setting = replace(setting, progress=estimate.announce(settings.progress))
    tuned, chosen, reached = stages.tune_best(
        setting,
        lambda: build(backbone),
        points,
        fleet=settings.fleet,
        halving=settings.halving,
        folds=folding.Folds(settings.folds, settings.split_seed or 0) if settings.folds else None,
    )
    setting = replace(setting, config=chosen)
    plain = stages.plain_features(setting)
    candidates = stages.untuned(setting, plain, tuned.adapter)
    run = accounts.of_learning(settings, setting, tuned, reached)
    return finish(setting, tuned, plain, candidates, run, settings)


@takes(CombineSettings)
def combine(task: str | Task, settings: CombineSettings) -> Outcome:
    """Combine a pool's prompts for a task with few images.

    The method weighs the sources, and what they learned is added up. The default is an ensemble
    with a head in closed form, which is not tuned. `outcome.run["moves"]["verdict"]` says whether
    the pool is worth it. The test split is measured under `no prompt`, the candidates, and `tuned`,
    which is the result.

    Raises VPromptError if no source of the pool fits the task and the backbone.
    """
    check_output(settings.output, settings.overwrite)
    following = Following.checked("combine", settings.method, **settings.follows)
    plan = plan_of(settings.method, **settings.of_sum())
    config = TrainConfig.of(settings.config, combining_defaults(settings.method, plan.form))
    if config.class_weights != "none":
        raise VPromptError(
            "combine chooses by how many images are right, each of which counts alike, so it has "
            "no --class-weights. Leave them out, or use `vprompt learn`."
        )
    align = "none" if plan.target_epochs else plan.align
    setting, selection = _open_all(task, settings, config, align=align, following=following)
    pool = weighing.line_up(setting, selection, plan)
    trial, looks = PromptAdapter(setting.backbone, pool.prompts[0]), setting.sizes(settings.test)
    # Gradients are kept apart from features, so that these say nothing about them.
    passes = [None, *pool.prompts] if pool.plan.looks and pool.plan.gradient_head is None else []
    kept = again.kept_passes(setting, passes)
    mark = again.mark_of(setting, pool.slots, settings.method, pool.plan)
    counts = {"sources": len(pool.sources), "kept": kept, "again": mark.there, **looks}
    estimate = combining_estimate(trial, setting.train, config, plan=pool.plan, **counts)
    setting = replace(setting, progress=estimate.announce(settings.progress))
    weighed = weighing.weigh(setting, settings.method, pool)
    begin = weighing.add_up(setting, settings.method, weighed)
    with setting.clock.stage("tune"):
        tuned = stages.run_tuning(setting, begin.adapter, config)
    candidates = {name: candidate for name, (candidate, _) in begin.candidates.items()}
    run = accounts.of_combining(task, settings, setting, weighed, begin, tuned)
    plain = weighed.evidence.plain
    outcome = finish(setting, tuned, plain, candidates, run, settings, begin.origin)
    mark.leave()
    return outcome


@takes(ScoreSettings)
def score(task: str | Task, settings: ScoreSettings) -> list[tuple[str, float]] | dict[str, Scores]:
    """Rank a pool for a task: return pairs `(source, score)`, the best first.

    Higher is better. The entry `(no prompt)` is the score of the frozen features, which a source
    should pass; metrics of prompts or heads have none. A list of metrics gives a dictionary with
    `Scores` for each, from one pass of the images. Sources that the screen leaves out are not in
    the result. Only a metric that compares prompts trains one on the target. `progress` is told the
    noise floor, and whether the scores separate the sources.
    """
    metric = settings.metric
    named = [metric] if isinstance(metric, str) else list(metric)
    plan = scoring.plan_of(named)
    setting, selection = _open_all(task, settings, None, align=None)
    sources, _ = screening.finish(selection, setting, adds_up=False)
    for sentence in scoring.rare_classes(setting.train.labels):
        settings.progress.say(sentence)
    first = next((source.prompt for source in sources if source.prompt is not None), None)
    if first is not None:
        width, labels = setting.backbone.feature_dim, setting.train.labels
        estimate = scoring_estimate(
            PromptAdapter(setting.backbone, first),
            setting.train,
            setting.config,
            sources=len(sources),
            epochs=plan.target_epochs,
            scores=floor.expected(named, labels, width, len(sources) + 1),
            kept=again.kept_passes(setting, [None, *(source.prompt for source in sources)]),
        )
        setting = replace(setting, progress=estimate.announce(settings.progress))
    wanted = {name for each in named for name in scoring.needs(each)}
    own = settings.source_data if wanted & scoring.SOURCE_DATA else None
    candidates = comparing.inputs_of_all(setting, sources, plan, own)
    setting.forget_checkpoints()
    found = {}
    with settings.progress.step("score", len(named)) as step:
        for each in named:
            found[each] = scoring.rank(each, candidates)
            step.advance(1, each)
    if not isinstance(metric, str):
        return found
    for sentence in floor.said(metric, candidates, found[metric]):
        settings.progress.say(sentence)
    reasons = [found[metric].missing[s.name] for s in sources if s.name in found[metric].missing]
    if reasons:
        raise VPromptError(reasons[0])
    return found[metric].ranked


def _open_all(
    task: str | Task,
    settings: CombineSettings | ScoreSettings,
    config: TrainConfig | None,
    *,
    align: str | None,
    following: Following | None = None,
) -> tuple[Setting, Selection]:
    """Open pool, backbone and images, each once; `align` is as for `screening.select`."""
    own = settings if isinstance(settings, CombineSettings) else None
    pool = catalogue.listing(settings.pool)
    backbone = opening.open_pool_backbone(
        pool,
        settings.model,
        image_size=None if own is None else own.image_size,
        exclude=settings.exclude,
        device=settings.device,
        progress=settings.progress,
    )
    opened = opening.open_task(task, **settings.of_task())
    opening.check_classes(opened, "score" if own is None else "combine")
    selection = screening.select(
        pool,
        backbone,
        None if own is None or own.include_self else opened,
        settings.screen,
        exclude=settings.exclude,
        force=settings.force,
        align=align,
        progress=settings.progress,
    )
    setting = stages.prepare(
        backbone,
        opened,
        config,
        settings.shots,
        settings.draw,
        digest=None if own is None else own.train_digest,
        skip_bad=settings.skip_bad,
        keep_states=own is not None and own.keep_states,
        progress=settings.progress,
        following=following,
    )
    return setting, selection
