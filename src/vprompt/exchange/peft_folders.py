"""Folders of PEFT: low-rank updates of a timm model's layers, and prompt tuning's tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.artifacts.artifact import Artifact, make_config
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.files import read_json
from vprompt.core.registry import Spec
from vprompt.learning.adapter import Adapter
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_BEFORE = "base_model.model."


def find(place: Path) -> tuple[Path, dict[str, Any]]:
    """Return the weight file of a folder, or of a file beside its config, and the config."""
    folder = place if place.is_dir() else place.parent
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    file = file if place.is_dir() else place
    if file is None or not (folder / CONFIG).is_file():
        raise VPromptError(
            f"{folder} is no adapter of PEFT: it needs {CONFIG} and {' or '.join(WEIGHTS)}."
        )
    facts = read_json(folder / CONFIG)
    kind = facts.get("peft_type") if isinstance(facts, dict) else None
    if kind not in ("LORA", "PROMPT_TUNING"):
        raise VPromptError(
            f"{folder / CONFIG} is of the type {kind!r}, and LORA and PROMPT_TUNING are read."
        )
    return file, facts


def is_lora(facts: Mapping[str, Any]) -> bool:
    """Say whether a config is of low-rank updates."""
    return facts.get("peft_type") == "LORA"


def lora(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], backbone: Backbone, classes: list[str]
) -> Artifact:
    """Return the artefact of low-rank updates, every tensor of which has its place."""
    odd = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias")]
    odd = [key for key in odd if facts.get(key) not in (None, False, {}, "none")]
    if odd:
        raise VPromptError(f"The adapter has {odd[0]}={facts[odd[0]]!r}, which is not read.")
    target = facts.get("target_modules")
    if not isinstance(target, list) or not all(isinstance(name, str) for name in target):
        raise VPromptError(f"The adapter's target_modules are {target!r}, and have to be names.")
    names = sorted({name.rpartition(".")[2] for name in target})
    spec = Spec("lora", {"rank": facts.get("r"), "alpha": facts.get("lora_alpha"), "target": names})
    adapter: Adapter = registry.build("adapters", str(spec))(backbone)
    left = {_plain(key): value.float() for key, value in tensors.items()}
    weight, bias = left.pop("head.weight", None), left.pop("head.bias", None)
    if weight is None:
        weight = torch.zeros(len(classes), backbone.feature_dim)
    head = Head(weight, torch.zeros(len(weight)) if bias is None else bias)
    state = {}
    for name, value in adapter.state().items():
        own = name.partition("twin.vit.")[2].replace(".default.", ".")
        given = left.pop(own, None)
        if given is None or given.shape != value.shape:
            seen = "is missing" if given is None else f"has shape {list(given.shape)}"
            raise VPromptError(
                f"The adapter does not fit {backbone.name!r}: {own} {seen}, and should be "
                f"{list(value.shape)}. Name the timm model that it was trained on."
            )
        state[name] = given
    if left:
        raise VPromptError(f"The adapter holds tensors that have no place here: {[*left][:3]}.")
    if tuple(head.weight.shape) != (len(classes), backbone.feature_dim):
        raise VPromptError(
            f"The head is {list(head.weight.shape)}, but you gave {len(classes)} class names and "
            f"features are {backbone.feature_dim} wide."
        )
    config = make_config(backbone, None, tuple(classes), None, head, method=str(spec))
    return Artifact(None, head, torch.zeros(backbone.feature_dim), config, state=state)


def _plain(key: str) -> str:
    """Return a name without what PEFT puts before it and into it."""
    return (
        key.removeprefix(_BEFORE).replace("modules_to_save.default.", "").replace(".default.", ".")
    )
