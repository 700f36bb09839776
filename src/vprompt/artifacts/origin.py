"""Origin: the start that a prompt was learned from: written down, computed again, and checked.

What a source knows is how far it moved from its start, so an artefact says where that was: by name
and seed where the backbone gives the same tokens again, as tensors where it does not. Processors
differ in the last bits, so what is computed again is checked by its digest first and, where that
differs, by a sketch of its values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.moves import Moves, measure, size_of
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, prompt_digest

SKETCH = 8  # numbers
CLOSE = 1e-3  # of the norm, by which a sketch may differ


@dataclass(frozen=True, eq=False)
class Origin:
    """A prompt's start, or None, and how it is known, a part of a sentence."""

    start: Prompt | None
    how: str


def kind_of(config: Mapping[str, Any]) -> str | None:
    """Return what two artefacts have in common whose tokens grew from one start; None: unknown."""
    init = config.get("prompt_init")
    if not init:
        return None
    if init.get("seed") is None:
        return str(init["digest"]) if init.get("digest") else None
    return f"{init.get('kind')}, seed {init['seed']}"


def describe(init: dict[str, Any] | None, prompt: Prompt, start: Prompt) -> dict[str, Any]:
    """Return what an artefact records of its start: kind and seed if it has them, and its check."""
    return {
        **(init or {"kind": "stored", "seed": None}),
        "digest": f"sha256:{prompt_digest(start)}",
        "sketch": sketch(start),
        "move": round(size_of(prompt, start), 6),
    }


def record(
    init: dict[str, Any] | None, backbone: Backbone, prompt: Prompt | None, start: Prompt | None
) -> tuple[dict[str, Any] | None, Prompt | None]:
    """Return `prompt_init` of a new artefact, and the start where it has to travel along.

    `init` is the kind and seed that the start is said to have; where they do not give these tokens
    again at this placement, the tokens themselves are kept.
    """
    if prompt is None or start is None or start.tokens.shape != prompt.tokens.shape:
        return init, None
    same = again(init, backbone, start)
    if same is not None and prompt_digest(same) == prompt_digest(start):
        return describe(init, prompt, start), None
    return describe(None, prompt, start), start


def shared_init(sources: Sequence[Artifact]) -> dict[str, Any] | None:
    """Return the kind and seed that all sources started from; None where they have none."""
    kinds = {kind_of(source.config) for source in sources}
    init = sources[0].config.get("prompt_init") or {}
    if len(kinds) > 1 or None in kinds or init.get("seed") is None:
        return None
    return {"kind": init["kind"], "seed": init["seed"]}


def sketch(prompt: Prompt) -> list[float]:
    """Return a few sums of all tokens with random signs: the same for starts equal to rounding."""
    signs = torch.randint(
        0, 2, (SKETCH, prompt.tokens.numel()), generator=stream(0, "sketch of a start")
    )
    sums = (2 * signs.double() - 1) @ prompt.tokens.double().flatten()
    return [float(f"{value:.6g}") for value in sums]


def again(init: dict[str, Any] | None, backbone: Backbone, placed: Prompt) -> Prompt | None:
    """Compute the start of that kind and seed where `placed` has its tokens; None if it has none.

    Only the kinds of the method `vpt` can be computed again.
    """
    if not init or not isinstance(init.get("kind"), str) or not isinstance(init.get("seed"), int):
        return None
    counts = placed.counts(backbone.depth)
    settings = {"prompt_init": init["kind"], "prompt_init_seed": init["seed"]}
    if placed.persist:
        settings |= {"num_virtual_tokens": sum(counts), "deep": False}
    else:
        settings |= {"num_virtual_tokens": counts, "deep": True}
    try:
        return registry.build("adapters", registry.Spec("vpt", settings))(backbone).prompt()
    except VPromptError:
        return None  # a kind that this version does not know


def of(source: Artifact, backbone: Backbone) -> Origin:
    """Return the start of an artefact's prompt: its own tensors, or computed again and checked."""
    init, prompt = source.config.get("prompt_init"), source.prompt
    if source.start is not None:
        return Origin(source.start, "stored with it")
    if prompt is None or not init:
        return Origin(None, "unknown: the artefact does not say where it began")
    start = again(init, backbone, prompt)
    if start is None:
        return Origin(None, f"unknown: {init.get('kind')!r} cannot be computed again")
    if "digest" not in init:
        return Origin(start, "computed again, without a digest to check it by")
    if init["digest"] == f"sha256:{prompt_digest(start)}":
        return Origin(start, "computed again, of the same digest")
    if _agree(init.get("sketch"), start):
        return Origin(start, "computed again, equal to rounding")
    return Origin(None, "unknown: computed again, it is not the start that the artefact records")


def moves_of(
    sources: Sequence[Artifact], backbone: Backbone, slots: Sequence[Prompt] | None = None
) -> tuple[Moves, list[Origin]]:
    """Return the moves of a pool and how every start is known; `slots` are the aligned tokens."""
    origins = [of(source, backbone) for source in sources]
    prompts = [source.prompt for source in sources if source.prompt is not None]
    starts = [origin.start for origin in origins]
    if slots is not None:
        starts = [
            _rearranged(prompt, start, slot)
            for prompt, start, slot in zip(prompts, starts, slots, strict=True)
        ]
        prompts = list(slots)
    return measure(prompts, starts, [source.name for source in sources]), origins


def _rearranged(prompt: Prompt, start: Prompt | None, slot: Prompt) -> Prompt | None:
    """Return the start in the order in which `slot` holds the prompt's tokens, NaN where none."""
    if start is None or (slot.tokens.shape == prompt.tokens.shape and slot is prompt):
        return start
    rows = []
    for block in slot.blocks.unique().tolist():
        own = (prompt.blocks == block).nonzero().flatten()
        tokens = prompt.tokens[own]
        for token in slot.tokens[slot.blocks == block]:
            same = (tokens == token).all(1).nonzero().flatten()
            empty = torch.full_like(token, torch.nan)
            rows.append(start.tokens[own[same[0]]] if len(same) else empty)
    return Prompt(torch.stack(rows), slot.blocks, slot.persist)


def _agree(recorded: Any, start: Prompt) -> bool:
    sound = isinstance(recorded, list) and len(recorded) == SKETCH
    if not sound or not all(isinstance(value, int | float) for value in recorded):
        return False
    apart = torch.tensor(recorded, dtype=torch.float64) - torch.tensor(
        sketch(start), dtype=torch.float64
    )
    return bool((apart.abs() <= CLOSE * start.tokens.double().norm()).all())
