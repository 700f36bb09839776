"""Artefact: a prompt on disk as PEFT lays it out, written atomically and read as mere data.

    my-prompt/
      adapter_config.json         what it is, for which backbone and preprocessing, its recipe
      adapter_model.safetensors   prompt_embeddings.{block}, head.weight, head.bias, task_embedding;
                                  adapter.{name} for a method without a prompt
      README.md                   the card for people
      run.json                    the record of the run that made it, where there is one

A stranger's folder is checked before anything of it is used: no pickle, no links out of the
folder, no missing, surplus, misshapen or non-finite tensor.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vprompt.backbone import Backbone, DataConfig
from vprompt.errors import VPromptError
from vprompt.files import atomic_folder, digest, write_json, write_tensors, write_text
from vprompt.heads import Head
from vprompt.prompt import Prompt

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
CARD, RUN = "README.md", "run.json"
FORMAT_VERSION = 1
_STATE = "adapter."
_PROMPT_KEY = re.compile(r"prompt_embeddings\.(\d{1,4})")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LARGEST_CONFIG = 2**22
_LARGEST_SIDE = 4096  # pixels
_LARGEST = 2**31  # bytes; a prompt is kilobytes, so more than this is not one


@dataclass(frozen=True, eq=False)
class Artifact:
    """A prompt, its head, the task's embedding, and everything its card and config say.

    `config` holds the keys of `adapter_config.json`; `folder` is where it was read from. `state`
    is what a method without a prompt trained, by name; `config["method"]` says which.
    """

    prompt: Prompt | None
    head: Head
    task_embedding: Tensor
    config: dict[str, Any]
    card: str = ""
    folder: Path | None = field(default=None, compare=False)
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name, or the task's where it was never saved."""
        return self.folder.name if self.folder else str(self.config.get("task", {}).get("name", ""))

    @property
    def classes(self) -> list[str]:
        """The labels in the order of the head's rows."""
        return list(self.config["label_names"])

    @property
    def data_config(self) -> DataConfig:
        """The preprocessing that the prompt was learned with."""
        return DataConfig.from_json(self.config["data_config"])

    @property
    def digest(self) -> str:
        """SHA-256 over the prompt's tokens and placement: what evidence depends on."""
        return prompt_digest(self.prompt)


def prompt_digest(prompt: Prompt | None) -> str:
    """Return a SHA-256 over tokens, blocks and persistence; `none` without a prompt."""
    if prompt is None:
        return "none"
    tokens = prompt.tokens.detach().cpu().contiguous()
    parts = (str(tokens.dtype), str(prompt.blocks.tolist()), str(prompt.persist))
    return digest(*parts, tokens.numpy().tobytes())


def make_config(
    backbone: Backbone,
    prompt: Prompt | None,
    classes: tuple[str, ...],
    **facts: Any,
) -> dict[str, Any]:
    """Return the keys of `adapter_config.json`; `facts` are further keys such as the recipe."""
    return {
        "peft_type": "VISUAL_PROMPT",
        "task_type": "IMAGE_CLASSIFICATION",
        "peft_version": None,
        "format_version": FORMAT_VERSION,
        "base_model_name_or_path": backbone.name,
        "revision": None,
        "base_model_fingerprint": backbone.fingerprint,
        "inference_mode": True,
        "num_virtual_tokens": prompt.counts(backbone.depth) if prompt else [0] * backbone.depth,
        "token_dim": backbone.dim,
        "feature_dim": backbone.feature_dim,
        "num_layers": backbone.depth,
        "persist": prompt.persist if prompt else False,
        "insert_position": "after_prefix",
        "modules_to_save": ["head"],
        "num_classes": len(classes),
        "label_names": list(classes),
        "data_config": backbone.data_config.to_json(),
        **facts,
    }


def save(
    artifact: Artifact,
    folder: Path,
    *,
    overwrite: bool = False,
    run: dict[str, Any] | None = None,
) -> None:
    """Write the folder, with the record of the run if there is one; complete or not at all."""
    tensors = {"head.weight": artifact.head.weight, "head.bias": artifact.head.bias}
    tensors["task_embedding"] = artifact.task_embedding
    if artifact.prompt is not None:
        for block in artifact.prompt.blocks.unique().tolist():
            rows = artifact.prompt.tokens[artifact.prompt.blocks == block]
            tensors[f"prompt_embeddings.{block}"] = rows
    tensors |= {f"{_STATE}{name}": value for name, value in artifact.state.items()}
    check_replaceable(Path(folder))
    plain = {key: value.float().cpu().contiguous() for key, value in tensors.items()}
    with atomic_folder(Path(folder), overwrite=overwrite) as draft:
        write_tensors(draft / TENSORS, plain, {"format": "pt"})
        write_json(draft / CONFIG, artifact.config)
        write_text(draft / CARD, artifact.card)
        if run is not None:
            write_json(draft / RUN, run)


def check_replaceable(folder: Path) -> None:
    """Raise VPromptError unless the place is free, empty or an artefact; nothing else goes."""
    occupied = folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file()
    if occupied or folder.is_file():
        raise VPromptError(
            f"{folder} holds something that is not an artefact, and it will not be replaced. Name "
            f"a new folder, such as {folder / 'mine'}."
        )


def load(folder: Path | str) -> Artifact:
    """Read and check a folder.

    Raises VPromptError with the reason when it is not an artefact, is truncated, holds a pickle,
    a link that leads out of the folder, or a tensor that is missing, misshapen or not finite.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = _read_tensors(folder)
    prompt = _build_prompt(folder, config, tensors)
    classes, width = config["num_classes"], config["feature_dim"]
    weight = _expect(folder, tensors, "head.weight", (classes, width))
    bias = _expect(folder, tensors, "head.bias", (classes,))
    embedding = _expect(folder, tensors, "task_embedding", (width,))
    state = {k.removeprefix(_STATE): tensors.pop(k) for k in [*tensors] if k.startswith(_STATE)}
    if state and not isinstance(config.get("method"), str):
        raise VPromptError(f"{folder / CONFIG} does not say which method its tensors belong to.")
    if tensors:
        raise VPromptError(f"{folder / TENSORS} holds tensors that no artefact has: {[*tensors]}.")
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return Artifact(prompt, Head(weight, bias), embedding, config, text, folder, state)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `adapter_config.json` alone; fast, for listing a pool."""
    folder = Path(folder)
    _check_folder(folder)
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
        raise VPromptError(f"{folder} is not a visual prompt: its peft_type is {kind!r}.")
    version = config.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise VPromptError(
            f"{folder} has format version {version!r}, and this vprompt reads up to "
            f"{FORMAT_VERSION}. Upgrade it: `pip install --upgrade vprompt`."
        )
    for key, kind in needed.items():
        if not isinstance(config.get(key), kind):
            raise VPromptError(f"{folder / CONFIG}: {key!r} is missing or not a {kind}.")
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
    counts = config["num_virtual_tokens"]
    if len(counts) != config["num_layers"] or not all(_is_count(count) for count in counts):
        raise VPromptError(f"{folder / CONFIG}: num_virtual_tokens needs one count per layer.")
    _check_data_config(folder, config["data_config"])
    return {**config, **_readable_facts(config)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_data_config(folder: Path, values: dict[str, Any]) -> None:
    try:
        found = DataConfig.from_json(values)
        sound = len(found.input_size) == 3 and min(found.input_size) > 0
        sound = sound and max(found.input_size) <= _LARGEST_SIDE
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
    accuracy = metrics.get("acc1") if isinstance(metrics, dict) else None
    if metrics is not None and not (isinstance(accuracy, float | int) and 0 <= accuracy <= 1):
        corrected["metrics"] = None
    return corrected


def check_fits(config: dict[str, Any], backbone: Backbone, *, what: str = "The prompt") -> None:
    """Raise VPromptError naming every field in which artefact and backbone differ."""
    mine = make_config(backbone, None, ())
    fields = ["token_dim", "feature_dim", "num_layers", "data_config", "base_model_fingerprint"]
    theirs = {**config, "data_config": DataConfig.from_json(config["data_config"]).to_json()}
    differ = [name for name in fields if theirs[name] != mine[name]]
    sizes = [entry["data_config"].get("input_size") for entry in (config, mine)]
    if sizes[0] != sizes[1] and "base_model_fingerprint" in differ:
        differ.remove("base_model_fingerprint")  # resampled positions change it, not the model
    if not differ:
        return
    config = theirs
    shown = "; ".join(
        f"{name}: {_short(config[name])} against {_short(mine[name])}" for name in differ
    )
    raise VPromptError(
        f"{what} was learned on {config['base_model_name_or_path']!r}, but the backbone is "
        f"{backbone.name!r}. They differ in {shown}. Load the backbone the prompt names, or add "
        "--force to use it all the same."
    )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise VPromptError(f"No artefact folder at {folder}.")
    for path in folder.iterdir():
        try:
            inside = folder.resolve() in path.resolve().parents
        except (OSError, RuntimeError):  # a link to itself
            inside = False
        if not inside:
            raise VPromptError(f"{path} links to a place outside its folder; refused.")
    missing = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    if missing:
        pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
        extra = (
            f" It holds {', '.join(pickles)}, a pickle, which could run any code and is not read."
            if pickles
            else ""
        )
        raise VPromptError(f"{folder} is not an artefact: it lacks {' and '.join(missing)}.{extra}")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS
    if path.stat().st_size > _LARGEST:
        raise VPromptError(f"{path} has {path.stat().st_size} bytes; no prompt is that large.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise VPromptError(
            f"{path} is truncated or not a safetensors file ({error}). Fetch it again."
        ) from None
    for key, value in tensors.items():
        if value.dtype not in _DTYPES or not torch.isfinite(value).all():
            raise VPromptError(
                f"{path}: {key!r} holds values that are not finite numbers; refused."
            )
    return {key: value.float() for key, value in tensors.items()}


def _build_prompt(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]
) -> Prompt | None:
    counts = config["num_virtual_tokens"]
    rows = [
        _expect(folder, tensors, f"prompt_embeddings.{block}", (count, config["token_dim"]))
        for block, count in enumerate(counts)
        if count
    ]
    surplus = [key for key in tensors if _PROMPT_KEY.fullmatch(key)]
    if surplus:
        raise VPromptError(f"{folder / TENSORS} holds {surplus}, which {CONFIG} does not announce.")
    if not rows:
        return None
    blocks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Prompt(torch.cat(rows), blocks, config["persist"])


def _expect(folder: Path, tensors: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in tensors:
        raise VPromptError(f"{folder / TENSORS} lacks {key!r}.")
    value = tensors.pop(key)
    if tuple(value.shape) != shape:
        raise VPromptError(
            f"{folder / TENSORS}: {key!r} has shape {tuple(value.shape)}, but {CONFIG} says "
            f"{shape}."
        )
    return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 or not text.startswith("sha256:") else text[:19]
