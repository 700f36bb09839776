"""Weighing: the middle of `combine`: a pool lined up, its evidence, its weights, and the sum.

Each step takes the value that the one before it returned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.moves import Moves
from vprompt.core import registry
from vprompt.pooling import combining, moving, screening, summing
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import PUBLISHED, Mix, Plan
from vprompt.pooling.screening import Selection
from vprompt.pooling.summing import Begin
from vprompt.prompts.prompt import Prompt
from vprompt.stages import Setting


@dataclass(frozen=True, eq=False)
class LinedUp:
    """Sources whose tokens correspond, and how they are going to be added up.

    Evidence is gathered under the `prompts`; the `slots` are what is added up, which are the same
    unless lengths differ. `aligned` says what was moved for it, `screened` how a large pool was
    screened. Without `moves` the sum is a convex one, as published.
    """

    sources: list[Artifact]
    prompts: list[Prompt]
    slots: list[Prompt]
    aligned: bool | dict[str, Any]
    plan: Plan
    moves: Moves | None = None
    screened: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Weighed:
    """Sources with what was seen of them, and the weights that a method gave them.

    `twins` are sources with the features of another, which got no weight of their own.
    """

    lined_up: LinedUp
    evidence: Evidence
    mix: Mix
    twins: Mapping[str, str]


def line_up(setting: Setting, selection: Selection, plan: Plan) -> LinedUp:
    """Finish the screening, bring tokens into correspondence, and measure the moves if asked.

    Where no source moved at all, the plan becomes that of a convex sum.
    """
    sources, screened = screening.finish(selection, setting, adds_up=True)
    prompts, slots, aligned = combining.align_sources(sources, plan.align)
    lined_up = LinedUp(sources, prompts, slots, aligned, plan, screened=screened)
    if plan.move_scale == PUBLISHED:
        return lined_up
    with setting.clock.stage("moves"):
        found = moving.measure_moves(sources, setting, slots, setting.progress)
    if found is None:
        return replace(lined_up, plan=replace(plan, move_scale=PUBLISHED, form="sum"))
    moves, rows = found
    return replace(
        lined_up,
        sources=[sources[row] for row in rows],
        prompts=[prompts[row] for row in rows],
        slots=[slots[row] for row in rows],
        moves=moves,
    )


def weigh(setting: Setting, method: str, lined_up: LinedUp) -> Weighed:
    """Gather the evidence, let the method weigh every different source, and say what came of it."""
    plan = lined_up.plan
    with setting.clock.stage("evidence"):
        evidence = combining.gather_evidence(
            setting, lined_up.sources, lined_up.prompts, plan, lined_up.slots
        )
    with setting.clock.stage("weigh"):
        mix, twins = combining.weigh_sources(
            registry.build("transfer", method), method, evidence, merge_twins=plan.merge_twins
        )
    for sentence in combining.remarks(mix, twins, evidence):
        setting.progress.say(sentence)
    return Weighed(lined_up, evidence, mix, twins)


def add_up(setting: Setting, method: str, weighed: Weighed) -> Begin:
    """Return what tuning starts from: a convex sum as published, or a sum of moves."""
    pool, evidence, mix = weighed.lined_up, weighed.evidence, weighed.mix
    kept = combining.kept_rows(evidence, weighed.twins)
    rest = (evidence, mix, pool.plan, kept)
    if pool.moves is None:
        return summing.published(setting, method, pool.sources, pool.prompts, pool.slots, *rest)
    return summing.moved(setting, method, pool.sources, pool.prompts, pool.moves, *rest)
