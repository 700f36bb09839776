"""Combining: the stages of `combine`, from a pool's prompts to the one that is tuned."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vprompt.artifacts import origin
from vprompt.artifacts.artifact import Artifact
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.linalg import centred_kernel_alignment, cosine_matrix, weighted_sum
from vprompt.core.progress import Progress
from vprompt.core.threads import on_one_thread
from vprompt.core.types import Features, PromptTokens, SourceFeatures, Weights
from vprompt.data.targets import CLASS
from vprompt.data.task import Task
from vprompt.learning import classifier
from vprompt.learning.adapter import WeightedSum
from vprompt.learning.train_config import TrainConfig
from vprompt.models.heads import Head, closed_form
from vprompt.pooling import scoring
from vprompt.pooling.evidence import Evidence, gather, without_looking
from vprompt.pooling.mix import Mix, Plan
from vprompt.pooling.starting import fresh_adapter
from vprompt.prompts import compose, matching
from vprompt.prompts.prompt import Prompt
from vprompt.stages import Setting, run_tuning

DUPLICATE = 0.9999  # cosine between the features of two sources that are one
SWITCH = 3.0  # standard errors by which another start has to be better than the mix
Start = tuple[Prompt | None, Head]  # a prompt to tune from, with its closed-form head
UNIFORM, MIXED = "uniform, untuned", "combined, untuned"


def without_self(sources: Sequence[Artifact], target: Task, progress: Progress) -> list[Artifact]:
    """Return the sources that were not learned on the target itself, and say which were.

    A prompt of the target's own flatters every figure of a transfer. It is known by the task's
    name and classes: its images may have been drawn anew.
    """

    own = [source for source in sources if is_own(source.config, target)]
    if not own:
        return list(sources)
    names = ", ".join(source.name for source in own)
    left = [source for source in sources if source not in own]
    if not left:
        raise VPromptError(
            f"All sources ({names}) were learned on {target.name!r}, the target itself. "
            "Use --include-self to combine them all the same."
        )
    progress.say(f"left out {names}: learned on {target.name!r}, the target itself")
    return left


def is_own(config: Mapping[str, Any], target: Task) -> bool:
    """Say whether an artefact was learned on the target: a task of its name and classes."""
    name = (config.get("task") or {}).get("name")
    return name == target.name and list(config["label_names"]) == list(target.classes)


def align_sources(
    sources: Sequence[Artifact], align: str
) -> tuple[list[Prompt], list[Prompt], bool | dict[str, Any]]:
    """Return the sources' prompts, what is added up of each, and what was moved for it.

    The two are the same prompts with tokens that correspond, unless lengths differ: then the
    second leave slots empty. `auto` matches tokens unless all sources say that they grew from one
    initialisation. `placement` brings prompts of different placements to one.
    """
    prompts = [source.prompt for source in sources if source.prompt is not None]
    if align == "placement":
        placed, facts = compose.align_places(prompts)
        return placed, placed, facts
    names = [source.name for source in sources]
    if align != "none" and matching.differ_in_length(prompts):
        slots, facts = matching.fill_slots(prompts, names)
        return [matching.without_empty(slot) for slot in slots], slots, facts
    compose.check_same_place(prompts, names)
    kinds = {origin.kind_of(source.config) for source in sources}
    if align == "none" or (align == "auto" and len(kinds) == 1 and None not in kinds):
        return prompts, prompts, False
    orders = compose.match_tokens(prompts)
    moved = any(bool((order.diff() != 1).any()) for order in orders)
    ordered = [p.with_tokens(p.tokens[o]) for p, o in zip(prompts, orders, strict=True)]
    return ordered, ordered, moved


def gather_evidence(
    setting: Setting,
    sources: Sequence[Artifact],
    prompts: Sequence[Prompt],
    plan: Plan,
    slots: Sequence[Prompt] | None = None,
) -> Evidence:
    """Pass the training images through every source, or take it from the cache.

    `slots` are what is added up, where that is not the prompts themselves.
    """
    if not plan.looks:
        precision = setting.config.precision
        plain = classifier.features_of(setting.backbone, None, setting.train, precision=precision)
        return without_looking([source.name for source in sources], setting.train, plain)
    filled = None if slots is None else matching.filled(slots)
    if filled is None or bool(filled.all()):
        filled = None
    elif plan.target_epochs:
        raise VPromptError(
            "This method compares the sources with a prompt learned on the target, token by token, "
            "but they have different lengths. Leave the others out with --exclude, or use another "
            "method, such as hgprompt."
        )
    named = {source.name: prompt for source, prompt in zip(sources, prompts, strict=True)}
    average = None
    if plan.reference:
        uniform = torch.full((len(prompts),), 1 / len(prompts), dtype=torch.float64)
        average = compose.combine(prompts if slots is None else slots, uniform)
    same = {
        source.name: source.head
        for source in sources
        if source.classes == list(setting.task.classes) and source.head.target == CLASS
    }
    evidence = gather(
        setting.backbone,
        named,
        setting.train,
        len(setting.task.classes),
        plan,
        average=average,
        filled=filled,
        source_heads=same,
        precision=setting.config.precision,
        prefix_cache=setting.config.prefix_cache,
        progress=setting.progress,
    )
    heads = [source.head for source in sources]
    evidence = replace(
        evidence,
        probabilities=_own_probabilities(heads, evidence.features),
        task_embeddings=torch.stack([source.task_embedding for source in sources]),
    )
    if plan.validation:
        evidence = _with_validation(setting, named, evidence)
    if plan.target_epochs:
        start, learned = _learn_target(setting, sources[0], prompts[0], plan.target_epochs)
        return replace(evidence, target=learned, target_start=start)
    return evidence


def _with_validation(setting: Setting, named: Mapping[str, Prompt], evidence: Evidence) -> Evidence:
    if setting.val is None:
        raise VPromptError(
            "The method chooses on validation images, but there are none. Use another method."
        )
    seen = gather(
        setting.backbone,
        named,
        setting.val,
        len(setting.task.classes),
        Plan(),
        precision=setting.config.precision,
        prefix_cache=setting.config.prefix_cache,
        progress=setting.progress,
    )
    return replace(evidence, val_features=seen.features, val_labels=seen.labels)


def _own_probabilities(
    heads: Sequence[Head], features: SourceFeatures
) -> tuple[Tensor | None, ...]:
    """Return what each source's head says of the images under its own prompt, float64.

    One of several classes or of a number has no distribution over classes to say.
    """
    return tuple(
        head.logits(each.double()).softmax(1) if head.target == CLASS else None
        for head, each in zip(heads, features, strict=True)
    )


def _learn_target(
    setting: Setting, first: Artifact, placed: Prompt, epochs: int
) -> tuple[PromptTokens, PromptTokens]:
    """Return the start that the sources share, and what a few epochs on the target make of it."""
    config = TrainConfig(
        epochs=epochs,
        keep="last",
        seed=setting.config.seed,
        precision=setting.config.precision,
    )
    adapter = fresh_adapter(setting, first, placed)
    start = adapter.prompt()
    prompt = run_tuning(setting, adapter, config, called=["target"]).adapter.prompt()
    assert start is not None and prompt is not None
    return start.tokens, prompt.tokens


def kept_rows(evidence: Evidence, twins: Mapping[str, str]) -> list[int]:
    """Return the rows of the sources that were weighed."""
    return [row for row, name in enumerate(evidence.names) if name not in twins]


@on_one_thread
def weigh_sources(
    weigh: Callable[[Evidence], Mix], method: str, evidence: Evidence, *, merge_twins: bool = True
) -> tuple[Mix, dict[str, str]]:
    """Weigh every different source once; a duplicate gets no weight and is named with its twin.

    The fused features of twins depend on the sum of their weights alone, so each weight by itself
    would mean nothing.
    """
    twins = duplicates(evidence.features) if merge_twins and evidence.looked else {}
    kept = [row for row in range(len(evidence)) if row not in twins]
    mix = weigh(evidence.select(kept))
    mix.check(method, len(kept))
    weights = torch.zeros(len(evidence), dtype=torch.float64)
    weights[kept] = mix.weights.double()
    layers = None
    if mix.layers is not None:
        layers = torch.zeros(len(mix.layers), len(evidence), dtype=torch.float64)
        layers[:, kept] = mix.layers.double()
    names = evidence.names
    facts = {**mix.facts, "weighed": [names[row] for row in kept]}
    return replace(mix, weights=weights, facts=facts, layers=layers), {
        names[a]: names[b] for a, b in twins.items()
    }


def duplicates(features: SourceFeatures) -> dict[int, int]:
    """Return, for each source whose features are those of an earlier one, that one."""
    cosines = cosine_matrix(features.double() - features.double().mean(1, keepdim=True))
    found: dict[int, int] = {}
    for row in range(len(cosines)):
        twin = next((i for i in range(row) if i not in found and cosines[row, i] > DUPLICATE), None)
        if twin is not None:
            found[row] = twin
    return found


def remarks(mix: Mix, twins: Mapping[str, str], evidence: Evidence) -> list[str]:
    """Return what a person should know about the weights, a sentence each."""
    found = [f"{name} has the features of {other}: weighed once" for name, other in twins.items()]
    silent = mix.facts.get("without_gradient")
    if silent:
        found.append(f"no gradient reaches {', '.join(silent)}: left out of the alignment")
    found += scoring.rare_classes(evidence.labels)
    return found


def refine(
    setting: Setting,
    prompts: Sequence[Prompt],
    mix: Mix,
    kept: Sequence[int],
    scale: str,
    epochs: int,
) -> Weights:
    """Let the weights of the `kept` sources climb the loss through the summed prompt.

    The surrogate adds up features; what is used in the end adds up prompts. Only M numbers are
    trained, judged like any other training on the validation images.
    """
    if mix.layers is not None:
        raise VPromptError("refine trains one weight per source, not one per layer. Use refine=0.")
    if bool((mix.weights < 0).any()):
        raise VPromptError(
            "refine keeps weights above 0, but the solver returned negative ones. Use another "
            "solver than leave_one_out_sgd, or refine=0."
        )
    config = TrainConfig(
        epochs=epochs,
        lr=0.1,
        head_lr=1e-4,
        keep="least_loss",
        seed=setting.config.seed,
        precision=setting.config.precision,
    )
    rows = list(kept)
    own = [prompts[row] for row in rows]
    adapter = WeightedSum(setting.backbone, own, mix.weights[rows], scale)
    tuned = run_tuning(setting, adapter, config, called=["refine"])
    assert isinstance(tuned.adapter, WeightedSum)
    weights = torch.zeros_like(mix.weights)
    weights[rows] = tuned.adapter.weights().detach().cpu().double()
    return weights / weights.sum()


def make_starts(
    setting: Setting,
    evidence: Evidence,
    prompts: Sequence[Prompt],
    slots: Sequence[Prompt],
    weights: Weights,
    mixed: Prompt,
    scale: str,
    kept: Sequence[int],
) -> dict[str, tuple[Start, dict[str, Any]]]:
    """Give every possible start its closed-form head: no prompt, best single, uniform, the mix."""
    hscore = registry.build("metrics", "hscore")
    best, single, seen = best_single(evidence, prompts, range(len(prompts)))
    uniform = torch.zeros_like(weights)
    uniform[list(kept)] = 1 / len(kept)
    options: dict[str, tuple[Prompt | None, Tensor | None]] = {
        "no prompt": (None, evidence.plain),
        f"best single ({best})": (single, seen),
        UNIFORM: (compose.combine(slots, uniform, scale=scale), None),
        MIXED: (mixed, None),
    }
    found = {}
    for name, (prompt, features) in options.items():
        if features is None:
            features = classifier.features_of(
                setting.backbone, prompt, setting.train, precision=setting.config.precision
            )
        head = closed_form(features, evidence.labels, len(setting.task.classes))
        facts = {
            "hscore": hscore(features, evidence.labels),
            "cv_accuracy": head.cv_accuracy,
            "cv_loss": head.cv_loss,
        }
        if name == MIXED:
            facts |= surrogate_gap(evidence, weights, features)
        found[name] = ((prompt, head), {k: v if v == v else None for k, v in facts.items()})
    return found


def best_single(
    evidence: Evidence, prompts: Sequence[Prompt], rows: Iterable[int]
) -> tuple[str, Prompt, Features]:
    """Return the source of the highest H-score among `rows`: its name, prompt and features."""
    hscore = registry.build("metrics", "hscore")
    best = max(rows, key=lambda row: hscore(evidence.features[row], evidence.labels))
    return evidence.names[best], prompts[best], evidence.features[best]


@on_one_thread
def surrogate_gap(evidence: Evidence, weights: Weights, composed: Features) -> dict[str, float]:
    """Return what adding up prompts lost of what adding up features promised.

    `gap` is the H-score of the fused features less that of the features under the composed prompt;
    `alignment` is how alike the two are, from 0 to 1 (centred kernel alignment).
    """
    hscore = registry.build("metrics", "hscore")
    fused = weighted_sum(weights.float(), evidence.features)
    gap = hscore(fused, evidence.labels) - hscore(composed, evidence.labels)
    return {"gap": gap, "alignment": centred_kernel_alignment(fused, composed)}


def safest_start(starts: Mapping[str, tuple[Start, dict[str, Any]]]) -> str:
    """Return the mix, unless another prompt has a clearly smaller cross-validated loss.

    "Clearly" is `SWITCH` standard errors of the paired difference over the training images: the
    loss of a few hundred held-out images is noisy, the mix was chosen by all of them, and the best
    single source is the luckiest of a pool. Two errors in one comparison are three in twelve.
    """
    mixed = starts[MIXED][0][1].cv_losses
    if mixed is None:
        return MIXED  # nothing could be held out
    gains = {MIXED: 0.0}
    for name, ((prompt, head), _) in starts.items():
        if prompt is not None and name != MIXED and head.cv_losses is not None:
            gains[name] = clear_gain(mixed, head.cv_losses)
    return max(gains, key=gains.__getitem__)


def clear_gain(before: Tensor, after: Tensor, errors: float = SWITCH) -> float:
    """Return the mean paired gain of the losses `after`, less `errors` standard errors of it."""
    gain = before - after
    return float(gain.mean() - errors * gain.std() / len(gain) ** 0.5)
