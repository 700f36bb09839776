"""Searching: the main line of `search`: find a length for every block, then learn with those."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from vprompt import flow, outcome, stages
from vprompt.adapters._bilevel import Bilevel
from vprompt.artifacts import artifact
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.progress import Progress, Step
from vprompt.core.randomness import numpy_stream
from vprompt.core.settings import takes
from vprompt.data.task import Task
from vprompt.learning import ending
from vprompt.learning.following import Following
from vprompt.learning.train_config import TrainConfig
from vprompt.opening import check_classes, open_backbone, open_task
from vprompt.outcome import Outcome
from vprompt.results import runs
from vprompt.results.cost import searching_estimate
from vprompt.verbs import SearchSettings


@takes(SearchSettings)
def search(task: str | Task, settings: SearchSettings) -> Outcome:
    """Search how many tokens each block needs, then learn a fresh prompt of those lengths.

    Where no block wants a token, the head is learned alone, or zero-shot is left. The record holds
    both stages; `protocol` is that of the second.
    """
    output = outcome.check_output(settings.output, settings.overwrite)
    method = settings.method
    following = Following.checked("search", method, **settings.follows)
    build = registry.build("adapters", method)
    backbone = open_backbone(
        settings.model,
        image_size=settings.image_size,
        device=settings.device,
        progress=settings.progress,
    )
    opened = open_task(task, **settings.of_task())
    check_classes(opened, "search")
    adapter = build(backbone)
    if not isinstance(adapter, Bilevel):
        raise VPromptError(f"{method!r} searches no lengths. Use `dpl`, or `clip_dpl`.")
    shots, draw = settings.shots, settings.draw
    drawn = opened if shots is None else opened.few_shot(shots, draw)
    later = TrainConfig.of(settings.config, {})
    ending.check_patience(later, drawn.val is not None)
    moved_on = choose_alpha_data(drawn, settings.alpha_data, method)
    searched = split_for_alpha(drawn, moved_on, draw)
    progress = _said_once(drawn, searched, settings.progress)
    config = TrainConfig.of(settings.search_config, stages.training_defaults(method))
    if later.class_weights != "none":  # a mistake costs the same in both stages
        config = config.model_copy(update={"class_weights": later.class_weights})
    setting = stages.prepare(
        backbone,
        searched,
        config,
        None,
        draw,
        skip_bad=settings.skip_bad,
        keep_states=settings.keep_states,
        progress=progress,
        following=following,
    )
    second = TrainConfig.of(settings.config, {})
    estimate = searching_estimate(
        adapter,
        setting.train,
        setting.config,
        alpha=min(adapter.settings.alpha_batch, len(setting.val or ())),
        then=second,
        again=len(drawn.train),
        val=len(drawn.val or ()),
        test=len(drawn.test or ()) if settings.test else 0,
    )
    setting = replace(setting, progress=estimate.announce(progress))
    with setting.clock.stage("search"):
        tuned = stages.run_tuning(setting, adapter, setting.config)
    found, chosen = adapter.found(), adapter.learns_as()
    progress.say(f"found lengths {found}; now `{chosen}` is learned")
    made = flow.learn(
        drawn,
        model=backbone,
        method=chosen,
        config=settings.config,
        test=settings.test,
        keep_states=settings.keep_states,
        protocol=settings.protocol,
        skip_bad=settings.skip_bad,
        progress=progress,
        callbacks=settings.callbacks,
        log=settings.log,
        log_dir=settings.log_dir,
    )
    record: dict[str, Any] = {
        "method": str(registry.parse(method)),
        "settings": registry.complete("adapters", method),
        "train": setting.config.model_dump(),
        "task": runs.describe_task(setting.task, {"train": setting.train, "val": setting.val}),
        "tuning": runs.describe_tuning(tuned, outcome.RULES["last"]),
        "found": found,
        "alpha_data": moved_on,
        "labelled_images": len(drawn.train) + (len(drawn.val or ()) if moved_on == "val" else 0),
        "seconds": setting.clock.seconds,
    }
    seconds = {"search": setting.clock.seconds["search"], **made.run["seconds"]}
    run = {**made.run, "command": "search", "search": record, "seconds": seconds}
    kept = made.artifact
    if output is not None:
        setting.promise(output)
        artifact.save(kept, output, overwrite=settings.overwrite, run=run)
        kept = replace(kept, folder=output)
    setting.forget_checkpoints()
    return Outcome(kept, made.test, run)


def _said_once(drawn: Task, searched: Task, progress: Progress) -> Progress:
    """Say the census of the task, and return a progress that leaves out those of both stages."""
    whole = drawn.census().sentences()
    for sentence in whole:
        progress.say(sentence)
    return _Heard(progress, frozenset((*whole, *searched.census().sentences())))


@dataclass(frozen=True)
class _Heard:
    """Progress that does not say again what was said."""

    progress: Progress
    heard: frozenset[str]

    def step(self, description: str, total: int) -> AbstractContextManager[Step]:
        """Open a piece of work."""
        return self.progress.step(description, total)

    def say(self, text: str) -> None:
        """Say what was not said before."""
        if text not in self.heard:
            self.progress.say(text)


def choose_alpha_data(task: Task, asked: str, method: str) -> str:
    """Return `val` or `half`: what is asked for, or what suits the method and the task.

    A method whose file holds `alpha_data(**settings) -> str` prefers that. A class of one image
    cannot be halved, and what has no validation images can only be halved.
    """
    if asked != "auto":
        return asked
    ask = registry.beside("adapters", method, "alpha_data")
    single = any(task.train.labels.count(label) < 2 for label in task.train.labels_present)
    halves = ask is not None and ask() == "half" and not single
    return "half" if halves or task.val is None else "val"


def split_for_alpha(task: Task, alpha_data: str, seed: int) -> Task:
    """Return the task as the search sees it: alpha's images as `val`, and no test split.

    Raises VPromptError where half of a class would be none.
    """
    if alpha_data not in ("auto", "val", "half"):
        raise VPromptError(f"alpha_data is `auto`, `val` or `half`, but got {alpha_data!r}.")
    if alpha_data == "val" or (alpha_data == "auto" and task.val is not None):
        if task.val is None:
            raise VPromptError("This task has no validation images. Use alpha_data=half.")
        return replace(task, test=None)
    held: list[int] = []
    rng = numpy_stream(seed, "alpha's half")
    for label in sorted(task.train.labels_present):
        rows = [row for row, other in enumerate(task.train.labels) if other == label]
        if len(rows) < 2:
            raise VPromptError(
                f"Class {task.classes[label]!r} has one training image, which cannot be halved. "
                "Add validation images, or more shots."
            )
        held += rng.permutation(rows)[: len(rows) // 2].tolist()
    kept = sorted(set(range(len(task.train))) - set(held))
    half = {**task.facts.get("few_shot", {}), "alpha_half": sorted(held)}
    facts = {**task.facts, "few_shot": half}
    return replace(
        task,
        train=task.train.subset(kept, f"{task.train.name}_search"),
        val=task.train.subset(sorted(held), f"{task.train.name}_alpha"),
        test=None,
        facts=facts,
    )
