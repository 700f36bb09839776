"""Evaluate: a finished artefact on a test split, with other class names where it can read them."""

from dataclasses import replace
from typing import Any

from vprompt.artifacts.artifact import Artifact
from vprompt.core.errors import VPromptError
from vprompt.core.settings import takes
from vprompt.data import finding, sentences
from vprompt.data.census import Census
from vprompt.data.preprocessing import Values
from vprompt.data.targets import NUMBER
from vprompt.data.task import Split, Task
from vprompt.learning.classifier import Candidate
from vprompt.models.two_tower import TextPrompt, TwoTower, text_head
from vprompt.opening import open_adapter, open_artifact, open_for, open_task
from vprompt.results import again
from vprompt.results.cost import measuring_estimate
from vprompt.results.measure import test_accuracy
from vprompt.verbs import EvaluateSettings


@takes(EvaluateSettings)
def evaluate(task: str | Task, settings: EvaluateSettings) -> dict[str, Any]:
    """Measure an artefact on the test split of a task; accuracies are from 0 to 1.

    The labels of a list are read as what the artefact gives: a class, several, or a number.

    The result has the entry `learned`. An artefact with a text tower reads the class names of the
    task, whatever they are, so a prompt learned on base classes can be measured on new ones or on
    another data set; `zero-shot` is measured beside it. Any other artefact is measured on the
    classes of its own head, matched by name; the task may have only some of them. If a folder or
    list has no splits, all of its images are test images.

    Raises VPromptError for classes that the head does not know.
    """
    progress = settings.progress
    loaded = open_artifact(settings.artifact, progress=progress)
    target = loaded.head.target
    opened = open_task(task, allow_absent=settings.allow_absent, all_test=True, target=target)
    if opened.test is None:
        raise VPromptError(
            f"Task {opened.name!r} has no test split to measure on. Name the folder or the list of "
            "the images that you want to measure on."
        )
    backbone = open_for(
        loaded,
        settings.model,
        device=settings.device,
        force=settings.force,
        progress=progress,
    )
    candidates: dict[str, Candidate] = {}
    head = loaded.head
    if loaded.text is not None:
        if not isinstance(backbone, TwoTower):
            raise VPromptError(
                f"The artefact has a text tower, and backbone {backbone.name!r} has none. Name the "
                "CLIP that it was learned on with --model."
            )
        plain = TextPrompt(opened.templates or sentences.GENERIC)
        candidates["zero-shot"] = (None, text_head(backbone, opened.classes, plain))
        head = text_head(backbone, opened.classes, loaded.text)
    else:
        opened = _in_classes_of(loaded, opened)
    candidates["learned"] = (open_adapter(loaded, backbone), head)
    opened = replace(opened, values=loaded.data_config.values or Values())
    for sentence in (*_tested(opened).sentences(), *_same_name(loaded, opened)):
        progress.say(sentence)
    assert opened.test is not None
    count = len(opened.test)
    mark = again.mark_of_measuring(backbone, opened, candidates, settings.precision)
    estimate = measuring_estimate(
        backbone, candidates["learned"][0], count, len(candidates), again=mark.there
    )
    progress = estimate.announce(progress)
    measured = test_accuracy(
        backbone,
        opened,
        candidates,
        precision=settings.precision,
        skip_bad=settings.skip_bad,
        progress=progress,
    )
    if loaded.text is None:
        mark.leave()
    return measured


def _in_classes_of(loaded: Artifact, task: Task) -> Task:
    """Return the task with the artefact's classes, found by name, and its test images alone."""
    alone: dict[str, Any] = {"train": Split("train", (), ()), "val": None, "only_test": True}
    if task.target == NUMBER:
        return replace(task, classes=tuple(loaded.classes), **alone)
    place = {finding.same_text(name): index for index, name in enumerate(loaded.classes)}
    present = range(len(task.classes)) if task.test is None else task.test.labels_present
    strange = [task.classes[label] for label in sorted(present) if task.classes[label] not in place]
    if strange:
        raise VPromptError(
            f"The artefact's head knows {len(loaded.classes)} classes ({_few(loaded.classes)}), "
            f"and task {task.name!r} has {len(task.classes)} ({_few(task.classes)}), among them "
            f"{_few(strange)}. Only an artefact with a text tower can be measured on classes that "
            "it did not learn."
        )
    labels = {index: place[name] for index, name in enumerate(task.classes) if name in place}
    return replace(
        task,
        classes=tuple(loaded.classes),
        test=None if task.test is None else task.test.renumbered(labels),
        **alone,
    )


def _tested(task: Task) -> Census:
    """Return the census of the test split alone; what else there is is not looked at."""
    return replace(task, train=Split("train", (), ()), val=None, only_test=True).census()


def _same_name(loaded: Artifact, task: Task) -> list[str]:
    """Warn where an artefact may have learned from the very images that it is measured on."""
    known = loaded.config.get("task") or {}
    whole = task.reading.cut.startswith("all images")
    if not whole or known.get("name") != task.name:
        return []
    return [
        f"the artefact was learned on a task called {task.name!r}: if these are the same images, "
        "it has learned from most of them, and what follows is no test"
    ]


def _few(classes: list[str] | tuple[str, ...]) -> str:
    return ", ".join(map(repr, classes[:3])) + (", ..." if len(classes) > 3 else "")
