"""Advice: what a person may conclude from a combination, and what to type next."""

import shlex
from collections.abc import Mapping
from typing import Any

from vprompt.artifacts import final
from vprompt.data.census import FEW_TEST
from vprompt.data.preprocessing import shown


def after_combining(run: Mapping[str, Any], output: str | None) -> list[str]:
    """Return whether the pool helped on the test images, and what to do next, a line each.

    What it is compared with is the same frozen features without the pool, under a head of their
    own; a prompt learned without the pool is another run, which is named.
    """
    found = final.of(run) or {}
    gain = found.get("gain")
    if gain is None:
        said, helped = (
            "whether the pool helped was not measured: the test split stayed closed",
            None,
        )
    else:
        points = f"{100 * gain['difference']:+.1f} points"
        span = f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"
        where = f"over {gain['over']} on {found['images']} test images ({span})"
        if gain["low"] > 0:
            said, helped = f"the pool helped: {points} {where}", True
        elif gain["high"] < 0:
            said, helped = f"the pool did harm: {points} {where}", False
        else:
            said, helped = f"whether the pool helped cannot be told: {points} {where}", None
    return [said, *_next(run, output, helped, found.get("images"))]


def _next(
    run: Mapping[str, Any], output: str | None, helped: bool | None, tested: int | None
) -> list[str]:
    """Return what to type next."""
    steps = []
    if helped is not False:
        place = output or "FOLDER"
        kept = "" if output else ", after the same command with `--output FOLDER`"
        steps.append(f"label images: `vprompt predict IMAGES --artifact {place}`{kept}")
    target = run.get("replay", {}).get("target", {})
    shots = f" --shots {target['shots']}" if target.get("shots") else ""
    model = run["backbone"]["name"]
    task = shlex.quote(target.get("data") or "TASK")
    size = shown(*run["backbone"]["data_config"]["input_size"][1:])
    learn = f"vprompt learn {task}{shots} --model {shlex.quote(model)} --image-size {size}"
    steps.append(f"compare with a prompt learned without the pool: `{learn}`")
    if helped is None and tested is not None:
        few = f"{tested} test images are few" if tested < FEW_TEST else "the interval is wide"
        steps.append(f"{few}: label more images to decide, or try other cuts (docs/data.md)")
    if helped is False:
        steps.append("or use a pool whose tasks are nearer to yours: `vprompt score` ranks one")
    return [f"next: {step}" for step in steps]
