"""Outcome: what learn and combine return, measured once, with its artefact and record."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vprompt import stages
from vprompt.artifacts import artifact, cards, catalogue, final, origin
from vprompt.artifacts.artifact import Artifact
from vprompt.core.files import check_free, check_writable
from vprompt.core.precision import resolve
from vprompt.learning import ending
from vprompt.learning.classifier import Candidate
from vprompt.learning.tune import Tuned
from vprompt.pooling.settings import SUM
from vprompt.prompts.prompt import Prompt
from vprompt.results import measure, runs
from vprompt.verbs import Trained

RULES = {
    "best": "epoch of best validation {measure}, the start included",
    "least_loss": "epoch of least validation loss, none less accurate than the start",
    "last": "last epoch",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What learn and combine return: the artefact, its measurements, and the full record.

    `test` has a `measure.Measured` for every candidate by name, of the kind of the task's target,
    and is empty if the test split stayed closed. `run` is what `run.json` holds.
    """

    artifact: Artifact
    test: dict[str, Any]
    run: dict[str, Any]


def finish(
    setting: stages.Setting,
    tuned: Tuned,
    plain: torch.Tensor,
    candidates: Mapping[str, Candidate],
    run: dict[str, Any],
    settings: Trained,
    begun: Prompt | None = None,
) -> Outcome:
    """Measure on the test split, once, and write artefact, card and record.

    `settings` say whether and where; `begun` is the start from which moves are measured, where it
    is not the adapter's own.
    """
    config = setting.config
    output = None if settings.output is None else Path(settings.output).expanduser()
    backbone, prompt, text = setting.backbone, tuned.adapter.prompt(), tuned.adapter.text()
    learned = run["command"] == "learn"
    started = tuned.adapter.started() if learned and begun is None else begun
    init, start = origin.record(run["prompt_init"], backbone, prompt, started)
    name = final.name(run["command"], config.epochs)
    if learned and init and init.get("move", 1.0) < catalogue.STILL:
        setting.progress.say(_still(tuned))
    measured: dict[str, Any] = {}
    if settings.test and setting.task.test is not None:
        with setting.clock.stage("test"):
            measured = measure.test_accuracy(
                backbone,
                setting.task,
                {**candidates, name: (tuned.adapter, tuned.head)},
                precision=config.precision,
                skip_bad=setting.skip_bad,
                progress=setting.progress,
            )
    judged = tuned.history[0].val_measure or "accuracy"
    by_folds = tuned.ended == ending.FOLDS
    rule = RULES["last" if setting.val is None and not by_folds else config.keep]
    rule = rule.format(measure=judged) + ", by folds" * by_folds
    run = {
        **run,
        "prompt_init": init,
        "task": runs.describe_task(setting.task, {"train": setting.train, "val": setting.val}),
        "backbone": runs.describe_backbone(backbone),
        "tuning": runs.describe_tuning(tuned, rule),
        "test": {key: value.to_json() for key, value in measured.items()},
        "seconds": setting.clock.seconds,
        "machine": runs.describe_machine(
            backbone.device, resolve(config.precision, backbone.device)
        ),
    }
    run["protocol"] = None if settings.protocol is None else settings.protocol.record(run)
    keys = ["command", "method", "settings", "pool", "train", "train_on", "grid"]
    keys += [*SUM, "replay"]
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
    seen = replace(backbone.data_config, values=setting.train.values)
    config_json["data_config"] = seen.to_json()
    card = cards.write(config_json, run)
    made = Artifact(
        prompt, head, plain.mean(0), config_json, card, state=state, text=text, start=start
    )
    if output is not None:
        setting.promise(output)
        artifact.save(made, output, overwrite=settings.overwrite, run=run)
        made = replace(made, folder=output)
    setting.forget_checkpoints()
    return Outcome(made, measured, run)


def _still(tuned: Tuned) -> str:
    """Say that a prompt ended where it began, why, and what to do about it."""
    why = "no epoch was better on validation"
    if tuned.kept_epoch:
        why = "its training loss left nothing to learn, or the rate was too small"
    elif not tuned.history[-1].epoch:
        why = "there was no epoch"
    return (
        f"the prompt is still its start ({why}): it carries nothing that others could use. For a "
        "pool, learn it with `--keep last`, as many `--epochs` as the training loss falls, and a "
        "larger rate, such as `--lr 0.3`"
    )


def check_output(output: Path | str | None, overwrite: bool) -> Path | None:
    """Return the place of the result; an existing folder is refused before the work, not after."""
    if output is None:
        return None
    place = Path(output).expanduser()
    check_writable(place, "--output")
    if overwrite:
        artifact.check_replaceable(place)
    check_free(output, overwrite=overwrite)
    return place
