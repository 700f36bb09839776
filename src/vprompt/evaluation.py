"""Evaluate: a finished artefact on a test split, with other class names where it can read them."""

from pathlib import Path

from vprompt import artifact as artifacts
from vprompt import hub, sentences
from vprompt.artifact import Artifact
from vprompt.backbone import Backbone
from vprompt.errors import VPromptError
from vprompt.measure import Candidate, Measurement, test_accuracy
from vprompt.opening import open_adapter, open_for, open_task
from vprompt.progress import SILENT, Progress
from vprompt.task import Task
from vprompt.two_tower import TextPrompt, TwoTower, text_head


def evaluate(
    task: str | Task,
    *,
    artifact: Artifact | Path | str,
    model: str | Backbone | None = None,
    device: str = "auto",
    precision: str = "auto",
    force: bool = False,
    skip_bad: bool = False,
    allow_absent: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Measurement]:
    """Measure an artefact on the test split of a task.

    An artefact with a text tower reads the task's class names, whatever they are: that is how a
    prompt learned on base classes is measured on new ones, or on another data set. Zero-shot stands
    beside it. Any other artefact is measured on the classes of its own head.
    """
    if isinstance(artifact, Artifact):
        loaded = artifact
    else:
        loaded = artifacts.load(hub.folder_of(artifact, progress=progress))
    opened = open_task(task, allow_absent=allow_absent)
    backbone = open_for(loaded, model, device=device, force=force, progress=progress)
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
    elif list(opened.classes) != loaded.classes:
        raise VPromptError(
            f"The artefact's head knows {len(loaded.classes)} classes ({_few(loaded.classes)}), "
            f"and task {opened.name!r} has {len(opened.classes)} ({_few(opened.classes)}). Only an "
            "artefact with a text tower can be measured on classes that it did not learn."
        )
    candidates["learned"] = (open_adapter(loaded, backbone), head)
    return test_accuracy(
        backbone, opened, candidates, precision=precision, skip_bad=skip_bad, progress=progress
    )


def _few(classes: list[str] | tuple[str, ...]) -> str:
    return ", ".join(map(repr, classes[:3])) + (", ..." if len(classes) > 3 else "")
