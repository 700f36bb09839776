"""Accounts: what is written down of a run before it is measured, one function a verb."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vprompt.artifacts import catalogue, origin
from vprompt.core import registry
from vprompt.data.task import Task
from vprompt.learning.adapter import Adapter
from vprompt.learning.tune import Tuned
from vprompt.pooling import starting
from vprompt.pooling.settings import SUM
from vprompt.pooling.summing import Begin
from vprompt.pooling.weighing import Weighed
from vprompt.results import runs
from vprompt.stages import Setting
from vprompt.verbs import CombineSettings, LearnSettings


def of_learning(
    settings: LearnSettings, setting: Setting, tuned: Tuned, reached: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what was asked of `learn`, and what every point of its grid reached."""
    grid = settings.grid or {}
    return {
        "command": "learn",
        "method": str(registry.parse(settings.method)),
        "settings": registry.complete("adapters", settings.method),
        "prompt_init": prompt_init(settings.method, tuned.adapter),
        "train": setting.config.model_dump(),
        "grid": {name: list(values) for name, values in grid.items()},
        "grid_reached": list(reached) if grid else [],
        **({"halving": True} if settings.halving else {}),
        "train_on": settings.train_on,
        **({"folds": settings.folds} if settings.folds else {}),
    }


def of_combining(
    task: str | Task,
    settings: CombineSettings,
    setting: Setting,
    weighed: Weighed,
    begin: Begin,
    tuned: Tuned,
) -> dict[str, Any]:
    """Return what was asked of `combine`, what the pool was worth, and its recipe."""
    pool, sources = weighed.lined_up, weighed.lined_up.sources
    weights = starting.final_weights(tuned, begin.weights)
    mix = replace(weighed.mix, facts=begin.mix.facts)
    transfer = runs.describe_transfer(
        sources, weighed.evidence, mix, weighed.twins, weights, begin.mixed
    )
    run: dict[str, Any] = {
        "command": "combine",
        "method": str(registry.parse(settings.method)),
        "settings": registry.complete("transfer", settings.method),
        "pool": catalogue.describe(settings.pool),
        **{name: getattr(pool.plan, name) for name in SUM},
        "scale": begin.scale,
        "include_self": settings.include_self,
        "train": setting.config.model_dump(),
        **({} if pool.screened is None else {"screening": pool.screened}),
        "transfer": transfer,
        **({} if begin.moves is None else {"moves": begin.moves}),
        "aligned": pool.aligned,
        "started_from": begin.name,
        "starts": {name: facts for name, (_, facts) in begin.candidates.items()},
        "prompt_init": origin.shared_init(sources),
        "backbone": runs.describe_backbone(setting.backbone),
    }
    images = f"sha256:{setting.train.digest}"
    drawn = {"shots": settings.shots, "draw": settings.draw, "digest": images}
    run["replay"] = runs.replay(run, task if isinstance(task, str) else None, drawn, sources)
    return run


def prompt_init(method: str, adapter: Adapter) -> dict[str, Any] | None:
    """Say from which initialisation a method's prompt starts, so that pools know what matches."""
    chosen = registry.complete("adapters", method)
    fresh = chosen.get("prompt_init") and not chosen.get("start")
    if not fresh or not adapter.keeps_places:
        return None
    return {"kind": chosen["prompt_init"], "seed": chosen["prompt_init_seed"]}
