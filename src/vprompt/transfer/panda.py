"""PANDA: a fresh prompt that learns from labels and from a teacher, itself a transferred prompt.

The teacher starts from the source whose task is most like the target and is trained on the target;
the student starts afresh. Tasks are compared by the mean features of their images under the frozen
backbone, so a source has to share one vector and no images.

Reference: Zhong et al., "PANDA: Prompt Transfer Meets Knowledge Distillation for Efficient Model
Adaptation", TKDE 2024, arXiv 2208.10160.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import unit_rows
from vprompt.core.registry import suggest
from vprompt.core.settings import Settings, takes
from vprompt.learning.adapter import Adapter, PromptAdapter
from vprompt.learning.distilling import Distilled
from vprompt.models.features import features_of
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan, TuningStart

DISTILLATIONS = ("kl", "mse", "published")
STUDENTS = ("fresh", "source")
_PUBLISHED = 0.1 * 0.1  # the public code's factor times its beta


class Panda(Settings):
    """The settings.

    `teachers` is how many of the nearest tasks have a weight. `distillation` is `kl` (between
    softmaxes at `temperature`, times its square) or `mse` (between logits). Either is multiplied by
    `strength` and the similarity, which the paper asks for and its code leaves out. `published` is
    that code: 0.01 times the `mse` divided once more by the batch size, next to nothing.
    `student=source` starts the student where its teacher started.
    """

    teachers: int = 1
    distillation: str = "kl"
    strength: float = 1.0
    temperature: float = 2.0
    student: str = "fresh"


@takes(Panda)
def plan(settings: Panda) -> Plan:
    """Ask for features alone; settings that make no sense are refused here."""
    teachers, distillation, student = settings.teachers, settings.distillation, settings.student
    strength, temperature = settings.strength, settings.temperature
    if teachers < 1:
        raise VPromptError(f"panda has at least one teacher, but got teachers={teachers}.")
    if distillation not in DISTILLATIONS:
        raise VPromptError(
            f"panda has no distillation {distillation!r}.{suggest(distillation, DISTILLATIONS)}"
        )
    if student not in STUDENTS:
        raise VPromptError(f"panda has no student {student!r}.{suggest(student, STUDENTS)}")
    if not (strength >= 0 and temperature > 0):
        raise VPromptError(
            f"panda needs a strength of at least 0 and a temperature above 0, but got {strength} "
            f"and {temperature}."
        )
    return Plan(safeguard=False, merge_twins=False, trainings=teachers)


def training(**settings: object) -> dict[str, Any]:
    """Return the rate that a fresh prompt wants."""
    del settings
    return {"lr": 5e-3}


@takes(Panda)
def weigh(evidence: Evidence, settings: Panda) -> Mix:
    """Return the softmax of the similarities of the `teachers` nearest tasks, others 0."""
    if evidence.task_embeddings is None:
        raise VPromptError("panda needs the sources' task embeddings, but the evidence has none.")
    found = task_similarities(evidence.task_embeddings, evidence.plain.mean(0))
    nearest = found.argsort(descending=True)[: settings.teachers]
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[nearest] = found[nearest].softmax(0)
    return Mix(weights, facts={"similarities": found.tolist()})


@takes(Panda)
def adapter(start: TuningStart, mix: Mix, settings: Panda) -> tuple[Adapter, Mix]:
    """Train the teachers on the target, and return a student with their mean logits."""
    rows = mix.weights.nonzero().flatten().tolist()
    logits, accuracies, similarity = torch.zeros(()), {}, 0.0
    for row in rows:
        tuned = start.tune(PromptAdapter(start.backbone, start.prompts[row]))
        share = float(mix.weights[row])
        logits = logits + share * tuned.head.logits(
            features_of(
                start.backbone,
                tuned.adapter.prompt(),
                start.train,
                precision=start.precision,
                use_cache=False,
            )
        )
        accuracies[start.names[row]] = tuned.record(tuned.kept_epoch).val_accuracy
        similarity += share * max(mix.facts["similarities"][row], 0.0)
    afresh, distillation = settings.student == "fresh", settings.distillation
    first = start.fresh() if afresh else PromptAdapter(start.backbone, start.prompt)
    weight = _PUBLISHED if distillation == "published" else settings.strength * similarity
    begun = Distilled(first, logits, weight, distillation, settings.temperature)
    facts = {**mix.facts, "teachers": accuracies, "distillation_weight": weight}
    return begun, replace(mix, facts=facts)


def task_similarities(sources: Tensor, target: Tensor) -> Tensor:
    """Return the cosine of each source's embedding `[sources, width]` with the target's `[width]`.

    All are seen from the mean of the sources, which most of each has in common. A single source
    has no such mean but itself, and is compared as it is.
    """
    centre = sources.double().mean(0) if len(sources) > 1 else torch.zeros(())
    return unit_rows(sources.double() - centre) @ unit_rows(target.double()[None] - centre)[0]
