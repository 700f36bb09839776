"""Summing: from weights to what is tuned: a convex sum as published, or a sum of moves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.moves import Moves
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.types import Weights
from vprompt.learning.adapter import Adapter, NoAdapter
from vprompt.learning.classifier import Candidate
from vprompt.models.heads import closed_form
from vprompt.pooling import combining, moving, starting
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan
from vprompt.prompts import compose
from vprompt.prompts.prompt import Prompt
from vprompt.stages import Setting


@dataclass(frozen=True, eq=False)
class Begin:
    """What tuning starts from, what it is compared with, and what the record says of it.

    `candidates` have their closed-form heads and what was held out; `name` is the one that tuning
    starts from, in a record's words. `mixed` is the summed prompt. `origin` is the start that moves
    are measured from, where there is one. `weights` are those of the sources after refining.
    """

    adapter: Adapter
    mix: Mix
    weights: Weights
    mixed: Prompt
    candidates: dict[str, tuple[Candidate, dict[str, Any]]]
    name: str
    scale: str
    origin: Prompt | None = None
    moves: dict[str, Any] | None = None


def published(
    setting: Setting,
    method: str,
    sources: Sequence[Artifact],
    prompts: Sequence[Prompt],
    slots: Sequence[Prompt],
    evidence: Evidence,
    mix: Mix,
    plan: Plan,
    kept: Sequence[int],
) -> Begin:
    """Add up prompts by weights of sum 1, and choose the safest start."""
    scale = plan.scale
    if scale == "auto" and not setting.backbone.centres_tokens:
        scale = "token_norm"  # `ln` shifts tokens, which only a LayerNorm does not notice
    weights = mix.weights
    if plan.refine:
        with setting.clock.stage("refine"):
            weights = combining.refine(setting, slots, mix, kept, scale, plan.refine)
    shares = compose.layer_shares(mix.layers, weights, slots[0])
    mixed = compose.combine(slots, shares, scale=scale)
    with setting.clock.stage("starts"):
        starts = combining.make_starts(
            setting, evidence, prompts, slots, weights, mixed, scale, kept
        )
    begin = combining.safest_start(starts) if plan.safeguard else combining.MIXED
    (first, _), _ = starts[begin]
    assert first is not None
    adapter, given, own = starting.adapter_of(
        setting, method, sources, prompts, first, replace(mix, weights=weights)
    )
    name = f"as {registry.parse(method).name} does" if own else begin
    found: dict[str, tuple[Candidate, dict[str, Any]]] = {**starts}
    return Begin(adapter, given, given.weights, mixed, found, name, scale)


def moved(
    setting: Setting,
    method: str,
    sources: Sequence[Artifact],
    prompts: Sequence[Prompt],
    moves: Moves,
    evidence: Evidence,
    mix: Mix,
    plan: Plan,
    kept: Sequence[int],
) -> Begin:
    """Add up moves in the direction of the weights, at a scale that the images choose."""
    if plan.refine:
        raise VPromptError(
            "refine moves weights of sum 1, and a sum of moves has none. Use climb in its place, "
            "or --move-scale published."
        )
    with setting.clock.stage("scales"):
        summed = moving.add_up(setting, moves, mix, mix.weights, plan, setting.progress)
    with setting.clock.stage("starts"):
        names = ("no prompt", "start, untuned", combining.MIXED)
        found = moving.candidates(setting, summed, names)
        if evidence.looked:
            best, prompt, features = combining.best_single(evidence, prompts, kept)
            head = closed_form(features, evidence.labels, len(setting.task.classes))
            facts = {"cv_loss": head.cv_loss, "cv_accuracy": head.cv_accuracy}
            single = {f"best single ({best})": ((prompt, head), facts)}
            last = found.pop(combining.MIXED)
            found = {**found, **single, combining.MIXED: last}
    begin = summed.path.choice.prompt or moves.start
    adapter, given, own = starting.adapter_of(setting, method, sources, prompts, begin, mix)
    if own and plan.form not in ("auto", "sum"):
        raise VPromptError(
            f"{registry.parse(method).name} trains something of its own, which has no form. Leave "
            "out --form."
        )
    name = f"as {registry.parse(method).name} does" if own else _begun_from(summed)
    made = summed.adapter
    if summed.unused and not setting.config.epochs and plan.move_scale == "auto":
        made, name = NoAdapter(setting.backbone), "no prompt, since no sum was better"
    return Begin(
        adapter if own else made,
        given,
        given.weights,
        begin,
        found,
        name,
        "none",
        moves.start,
        moving.describe(summed),
    )


def _begun_from(summed: moving.Summed) -> str:
    """Say what tuning starts from, in words."""
    if summed.form == "ensemble":
        return "the ensemble of scales"
    if summed.path.choice.prompt is None:
        return "the start, since no prompt was better than any scale"
    return f"the sum of moves at {summed.path.choice.name}"
