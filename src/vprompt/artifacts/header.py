"""Header: `adapter_config.json`, read as that of a stranger; no torch, so that pools list fast."""

import json
import math
import os
from pathlib import Path
from typing import Any

from vprompt.artifacts import foreign, measured, whole
from vprompt.core.errors import VPromptError
from vprompt.data import sentences
from vprompt.data.preprocessing import LARGEST_SIDE, DataConfig

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# 4: heads of several classes or a number; 3: heads that see more than one feature; 2: heads that
# compare directions, and text towers; what needs none of it is written as 1.
FORMAT_VERSION = 4
ANSWERS = ("several", "number")  # heads that give an image something other than one class
HEADS = ("linear", "cosine", "sigmoid", *ANSWERS)
_LARGEST_CONFIG = 2**22
# What a stranger's artefact may ask for: several times what the largest models have.
_MOST = {
    "num_layers": 1000,
    "token_dim": 2**16,
    "feature_dim": 2**16,
    "head_features": 2**20,
    "num_classes": 2**20,
}
_MOST_TOKENS = 2**17
_MOST_PIXELS = 2048 * 2048


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `adapter_config.json` alone; fast, for listing a pool."""
    folder = Path(folder)
    return whole.steadily(folder, lambda: _read_config(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    check_folder(folder)
    if (folder / CONFIG).stat().st_size > _LARGEST_CONFIG:
        raise VPromptError(f"{folder / CONFIG} is too large to be the config of a prompt.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers of too many digits
        raise VPromptError(f"{folder / CONFIG} is not valid JSON: {error}.") from None
    needed: dict[str, type | tuple[type, ...]] = {
        "base_model_name_or_path": str,
        "base_model_fingerprint": str,
        "num_virtual_tokens": list,
        "token_dim": int,
        "feature_dim": int,
        "num_layers": int,
        "persist": bool,
        "num_classes": int,
        "label_names": list,
        "data_config": dict,
    }
    if not isinstance(config, dict) or config.get("peft_type") != "VISUAL_PROMPT":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise VPromptError(
            f"{folder} is not a visual prompt: its peft_type is {kind!r}, so it is another "
            "program's adapter, or damaged."
        )
    version = config.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise VPromptError(
            f"{folder} has format version {version!r}, and this vprompt reads up to "
            f"{FORMAT_VERSION}. Upgrade it: `pip install --upgrade vprompt`."
        )
    for key, kind in needed.items():
        if not isinstance(config.get(key), kind):
            raise VPromptError(f"{folder / CONFIG}: {key!r} is missing or not a {kind}.")
    if not _is_count(config.get("head_features", 1)):
        raise VPromptError(f"{folder / CONFIG}: head_features is not a number of features.")
    if config["num_classes"] < 1 or isinstance(config["num_classes"], bool):
        raise VPromptError(f"{folder / CONFIG}: a head has at least one class.")
    if len(config["label_names"]) != config["num_classes"]:
        raise VPromptError(
            f"{folder / CONFIG} names {len(config['label_names'])} labels for "
            f"{config['num_classes']} classes."
        )
    labels = config["label_names"]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise VPromptError(f"{folder / CONFIG}: label_names are not all different texts.")
    if config.get("insert_position", "after_prefix") != "after_prefix":
        raise VPromptError(
            f"{folder / CONFIG}: tokens enter at {config['insert_position']!r}, and this vprompt "
            "knows `after_prefix` alone."
        )
    _check_counts(folder, config, "num_virtual_tokens")
    _check_text(folder, config.get("text"))
    if config.get("head_type", HEADS[0]) not in HEADS:
        raise VPromptError(
            f"{folder / CONFIG}: head_type is {config['head_type']!r}, and this vprompt knows "
            f"{' and '.join(HEADS)}."
        )
    _check_answers(folder, config)
    _check_data_config(folder, config["data_config"])
    _check_bounds(folder, config)
    whole.check_config(folder, config)
    return {**config, **_readable_facts(config)}


def _check_answers(folder: Path, config: dict[str, Any]) -> None:
    """Check what a head of several classes or of a number needs beside its tensors."""
    kind, thresholds = config.get("head_type"), config.get("thresholds")
    if kind == "number" and config["num_classes"] != 1:
        raise VPromptError(
            f"{folder / CONFIG}: a head of numbers has one output, and {config['num_classes']} are "
            "announced."
        )
    if kind != "several":
        return
    shares = thresholds if isinstance(thresholds, list) else []
    sound = all(isinstance(x, int | float) and not isinstance(x, bool) for x in shares)
    if len(shares) != config["num_classes"] or not sound or not all(0 <= x <= 1 for x in shares):
        raise VPromptError(
            f"{folder / CONFIG}: thresholds is a number from 0 to 1 for each of the "
            f"{config['num_classes']} classes, and it is missing or something else."
        )


def _check_bounds(folder: Path, config: dict[str, Any]) -> None:
    """Refuse sizes that no model has: what follows them would take memory and hours."""
    for where, values in (("", config), ("text.", config.get("text") or {})):
        for key, most in _MOST.items():
            value = values.get(key, 0)
            if not _is_count(value) or value > most:
                raise VPromptError(
                    f"{folder / CONFIG}: {where}{key} is {str(value)[:20]}, and it is a number up "
                    f"to {most}."
                )
        if (count := sum(values.get("num_virtual_tokens", ()))) > _MOST_TOKENS:
            raise VPromptError(
                f"{folder / CONFIG}: a prompt of {str(count)[:20]} tokens; at most {_MOST_TOKENS} "
                "are read."
            )


def _check_counts(folder: Path, values: dict[str, Any], what: str) -> None:
    counts = values["num_virtual_tokens"]
    if len(counts) != values["num_layers"] or not all(_is_count(count) for count in counts):
        raise VPromptError(f"{folder / CONFIG}: {what} needs one count per layer.")


def _check_text(folder: Path, text: Any) -> None:
    if text is None:
        return
    kinds: dict[str, type] = {"templates": list, "num_virtual_tokens": list, "persist": bool}
    kinds |= {"token_dim": int, "num_layers": int}
    wrong = [key for key, kind in kinds.items() if not isinstance(_get(text, key), kind)]
    if wrong:
        raise VPromptError(f"{folder / CONFIG}: text lacks {', '.join(map(repr, wrong))}.")
    _check_counts(folder, text, "num_virtual_tokens of text")
    if not all(isinstance(template, str) for template in text["templates"]):
        raise VPromptError(f"{folder / CONFIG}: the templates of text are not all texts.")
    sentences.check(text["templates"])


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_data_config(folder: Path, values: dict[str, Any]) -> None:
    try:
        found = DataConfig.from_json(values)
        sound = len(found.input_size) == 3 and min(found.input_size) > 0
        _, height, width = found.input_size
        sound = sound and max(height, width) <= LARGEST_SIDE and height * width <= _MOST_PIXELS
        sound = sound and all(math.isfinite(v) for v in (*found.mean, *found.std, found.crop_pct))
        sound = sound and min(found.std) > 0 and found.crop_pct > 0
        if not sound or len(found.mean) != 3 or len(found.std) != 3:
            raise ValueError("its numbers describe no preprocessing")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise VPromptError(f"{folder / CONFIG}: data_config cannot be used ({error}).") from None


def _readable_facts(config: dict[str, Any]) -> dict[str, Any]:
    """Keep what a stranger says of task and results only where it has the form we write."""
    corrected: dict[str, Any] = {}
    task, metrics = config.get("task", {}), config.get("metrics")
    if not isinstance(task, dict) or not isinstance(task.get("name", ""), str):
        corrected["task"] = {}
    if metrics is not None and not measured.is_sound(metrics):
        corrected["metrics"] = None
    if not isinstance(config.get("recipe", {}), dict):
        corrected["recipe"] = {}
    if not isinstance(config.get("prompt_init"), dict | None):
        corrected["prompt_init"] = None  # unknown: no start is known to be shared
    return corrected


def check_folder(folder: Path) -> None:
    """Refuse a folder that lacks a file, or has a link to a place outside of it."""
    if folder.is_file():
        raise VPromptError(foreign.describe_file(folder))
    if not folder.is_dir():
        raise VPromptError(f"No artefact folder at {folder}.")
    with os.scandir(folder) as listing:
        found = list(listing)
    for each in found:
        # What is no link lies where it is listed: resolving it would only take time.
        if each.is_symlink() and not _stays_inside(folder, Path(each.path)):
            raise VPromptError(f"{each.path} links to a place outside its folder; refused.")
    files = {each.name for each in found if each.is_file()}
    missing = [name for name in (CONFIG, TENSORS) if name not in files]
    if missing:
        raise VPromptError(
            f"{folder} is not an artefact: it lacks {' and '.join(missing)}."
            f"{foreign.describe_folder(folder)}"
        )


def other_method(folder: Path) -> str:
    """Return the kind of adapter that another program left in a folder, or nothing."""
    try:
        if (folder / CONFIG).stat().st_size > _LARGEST_CONFIG:
            return ""
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    kind = config.get("peft_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) and kind != "VISUAL_PROMPT" else ""


def _stays_inside(folder: Path, link: Path) -> bool:
    try:
        return folder.resolve() in link.resolve().parents
    except (OSError, RuntimeError):  # a link to itself
        return False
