"""Artefact: a prompt on disk as PEFT lays it out, written atomically and read as mere data.

    my-prompt/
      adapter_config.json         what it is, for which backbone and preprocessing, its recipe
      adapter_model.safetensors   prompt_embeddings.{block}, head.weight, head.bias, task_embedding;
                                  text_prompt_embeddings.{block} of a text tower;
                                  adapter.{name} for a method without a prompt;
                                  start_embeddings.{block} where the start has no name and seed
      README.md                   the card for people
      run.json                    the record of the run that made it, where there is one

`header.py` and `codec.py` check a stranger's folder before anything of it is used.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vprompt.artifacts import codec, whole
from vprompt.artifacts.header import ANSWERS, CONFIG, TENSORS, check_folder, read_config
from vprompt.core import distributed, seals
from vprompt.core.errors import VPromptError
from vprompt.core.files import (
    atomic_folder,
    read_json,
    tensor_bytes,
    text_bytes,
    write_text,
)
from vprompt.core.wide import wide_json
from vprompt.data import inputs
from vprompt.data.preprocessing import DataConfig
from vprompt.data.targets import NUMBER, SEVERAL
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head
from vprompt.models.two_tower import TextPrompt, TwoTower
from vprompt.prompts.prompt import Prompt, prompt_digest

CARD, RUN = "README.md", "run.json"
LARGEST_RUN = 2**25  # bytes
LARGEST = {CARD: 2**22, RUN: LARGEST_RUN}
_QUICK = "_clip_quickgelu_"  # in timm's names
_LONGEST = 60  # characters of a value in an error


@dataclass(frozen=True, eq=False)
class Artifact:
    """A prompt, its head, the task's embedding, and everything its card and config say.

    `config` holds the keys of `adapter_config.json`, and `folder` is where it was read from.
    `state` holds the tensors that a method without a prompt trained, by name; `config["method"]`
    says which method. `text` is the text half of a prompt for two towers; the head then holds the
    features of its classes. `start` is what the prompt was learned from, unless
    `config["prompt_init"]` says how to compute it.
    """

    prompt: Prompt | None
    head: Head
    task_embedding: Tensor
    config: dict[str, Any]
    card: str = ""
    folder: Path | None = field(default=None, compare=False)
    state: dict[str, Tensor] = field(default_factory=dict)
    text: TextPrompt | None = None
    start: Prompt | None = None

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
        """SHA-256 over the image prompt's tokens and placement: what evidence depends on."""
        return prompt_digest(self.prompt)

    def preprocess(self, images: Any) -> Tensor:
        """Return normalised images: one as `[3, height, width]`, several as `[batch, 3, ...]`.

        An image is a path, a Pillow image, a NumPy array `[height, width, 3]` or a tensor
        `[3, height, width]`, with whole numbers from 0 to 255 or floats from 0 to 1. Several are a
        list, or have one more axis in front. This also works as a `transform` for torchvision's
        data sets. Raises VPromptError for other shapes and ranges.
        """
        config, found = self.data_config, inputs.each(images)
        if not found:
            raise VPromptError("There are no images to preprocess.")
        made = np.stack([inputs.pixels(image, config) for image in found])
        batch = inputs.normalise(torch.from_numpy(made), config)
        many = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        return batch if many else batch[0]


def make_config(
    backbone: Backbone,
    prompt: Prompt | None,
    classes: tuple[str, ...],
    text: TextPrompt | None = None,
    head: Head | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Return the keys of `adapter_config.json`; `facts` are further keys such as the recipe.

    `head_features` is how wide what the head sees is, where that is not the backbone's feature.
    """
    cosine = head is not None and head.cosine
    width = backbone.feature_dim if head is None else head.weight.shape[1]
    wide = {} if width == backbone.feature_dim else {"head_features": width}
    kind = _head_type(head)
    version = 4 if kind in ANSWERS else 3 if wide else 2 if cosine or text else 1
    config = {
        "peft_type": "VISUAL_PROMPT",
        "task_type": "IMAGE_CLASSIFICATION",
        "peft_version": None,
        "format_version": version,
        "base_model_name_or_path": backbone.name,
        "revision": None,
        **({"base_model_repository": backbone.repository} if backbone.repository else {}),
        "base_model_fingerprint": backbone.fingerprint,
        "inference_mode": True,
        **codec.placement(prompt, backbone.depth, backbone.dim),
        "feature_dim": backbone.feature_dim,
        **wide,
        "insert_position": "after_prefix",
        "modules_to_save": ["head"],
        "head_type": kind,
        **_thresholds(head),
        "num_classes": len(classes),
        "label_names": list(classes),
        "data_config": backbone.data_config.to_json(),
        **facts,
    }
    if text is not None:
        assert isinstance(backbone, TwoTower)
        tower = backbone.text
        config["text"] = {
            "templates": list(text.templates),
            **codec.placement(text.prompt, tower.depth, tower.dim),
        }
    return config


def save(
    artifact: Artifact,
    folder: Path,
    *,
    overwrite: bool = False,
    run: dict[str, Any] | None = None,
) -> None:
    """Write the folder, with the record of the run if there is one, completely or not at all.

    If several processes share a run, only the first writes. Raises VPromptError if the folder
    exists, unless `overwrite`; what is replaced has to be an artefact.
    """
    if not distributed.is_first():
        return
    tensors = {"head.weight": artifact.head.weight, "head.bias": artifact.head.bias}
    tensors["task_embedding"] = artifact.task_embedding
    tensors |= codec.prompt_tensors(artifact.prompt, "prompt_embeddings")
    tensors |= codec.prompt_tensors(artifact.start, "start_embeddings")
    if artifact.text is not None:
        tensors |= codec.prompt_tensors(artifact.text.prompt, "text_prompt_embeddings")
    tensors |= {f"{codec.STATE}{name}": value for name, value in artifact.state.items()}
    folder = Path(folder).expanduser()
    check_replaceable(folder)
    plain = {key: value.float() for key, value in tensors.items()}
    contents = {TENSORS: tensor_bytes(plain, {"format": "pt"}), CARD: text_bytes(artifact.card)}
    if run is not None:
        contents[RUN] = text_bytes(wide_json(run))
    config = whole.with_digests(artifact.config, contents)
    contents[CONFIG] = text_bytes(wide_json(config))
    with atomic_folder(folder, overwrite=overwrite) as draft:
        for name, data in contents.items():
            (draft / name).write_bytes(data)


def seal(folder: Path | str) -> None:
    """Record the files of an artefact as they are now, after an edit by hand."""
    folder = Path(folder).expanduser()
    check_folder(folder)
    names = [name for name in (TENSORS, CARD, RUN) if (folder / name).is_file()]
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise VPromptError(f"{folder / CONFIG} is not the config of a prompt.")
    config = whole.with_digests(config, {name: seals.of_file(folder / name) for name in names})
    write_text(folder / CONFIG, wide_json(config))
    load(folder)


def read_run(path: Path | str) -> dict[str, Any]:
    """Return the record of a run, from a `run.json` or from an artefact that holds one."""
    path = Path(path).expanduser()
    if path.is_dir():
        check_folder(path)
        path = path / RUN
    return whole.steadily(path.parent, lambda: _read_run(path))


def _read_run(path: Path) -> dict[str, Any]:
    if path.is_file() and path.stat().st_size > LARGEST_RUN:
        raise VPromptError(f"{path} is too large to be the record of a run.")
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("tuning"), dict):
        raise VPromptError(f"{path} is not the record of a run. Give a run.json or an artefact.")
    return record


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
    folder = Path(folder).expanduser()
    return whole.steadily(folder, lambda: _load(folder))


def check(folder: Path | str) -> dict[str, Any]:
    """Check a folder as `load` does, in little memory whatever it holds; return its config."""
    folder = Path(folder).expanduser()
    return whole.steadily(folder, lambda: _check(folder))


def _check(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    announced = codec.announced(config)
    present = codec.check_header(folder / TENSORS, announced)
    missing = [name for name in announced if name not in present]
    started = any(name.startswith("start_") for name in present)
    missing = [name for name in missing if started or not name.startswith("start_")]
    if missing:
        raise VPromptError(f"{folder / TENSORS} lacks {missing[0]!r}.")
    stateful = any(name.startswith(codec.STATE) for name in present)
    if stateful and not isinstance(config.get("method"), str):
        raise VPromptError(f"{folder / CONFIG} does not say which method its tensors belong to.")
    for name, most in LARGEST.items():
        path = folder / name
        if path.is_file() and path.stat().st_size > most:
            raise VPromptError(f"{path} has {path.stat().st_size} bytes; at most {most} are read.")
    whole.check_files(folder, config, (TENSORS, CARD, RUN))
    return config


def _load(folder: Path) -> Artifact:
    config = _check(folder)
    tensors = codec.read_tensors(folder)
    prompt, text = codec.take_prompt(folder, config, tensors, "prompt_embeddings"), None
    start = None
    if any(name.startswith("start_embeddings.") for name in tensors):
        start = codec.take_prompt(folder, config, tensors, "start_embeddings")
    if config.get("text") is not None:
        words = codec.take_prompt(folder, config["text"], tensors, "text_prompt_embeddings")
        text = TextPrompt(tuple(config["text"]["templates"]), words)
    kind = config.get("head_type", "linear")
    thresholds = torch.tensor(config["thresholds"]) if kind == SEVERAL else None
    head = Head(
        tensors.pop("head.weight"),
        tensors.pop("head.bias"),
        cosine=kind in ("cosine", "sigmoid"),
        sigmoid=kind in ("sigmoid", SEVERAL),
        thresholds=thresholds,
        numbers=kind == NUMBER,
    )
    embedding = tensors.pop("task_embedding")
    state = {name.removeprefix(codec.STATE): value for name, value in tensors.items()}
    card = folder / CARD
    words_of_card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    config.pop(whole.DIGESTS, None)  # of these files; what is saved again has its own
    return Artifact(prompt, head, embedding, config, words_of_card, folder, state, text, start)


def _thresholds(head: Head | None) -> dict[str, Any]:
    """Return from which probability on an image has each class, to be read by people as well."""
    if head is None or head.thresholds is None:
        return {}
    return {"thresholds": [round(float(value), 6) for value in head.thresholds]}


def _head_type(head: Head | None) -> str:
    if head is not None and head.target in ANSWERS:
        return head.target
    if head is None or not head.cosine:
        return "linear"
    return "sigmoid" if head.sigmoid else "cosine"


def check_fits(config: dict[str, Any], backbone: Backbone, *, what: str = "The prompt") -> None:
    """Raise VPromptError naming every field in which artefact and backbone differ."""
    shown = differences(config, backbone)
    if shown:
        raise VPromptError(
            f"{what} was learned on {config['base_model_name_or_path']!r}, but the backbone is "
            f"{backbone.name!r}. They differ in {shown}. Load the backbone the prompt names, or "
            "add --force to use it all the same."
        )


def differences(config: dict[str, Any], backbone: Backbone) -> str:
    """Return every field in which artefact and backbone differ, with both values, or nothing."""
    mine = make_config(backbone, None, ())
    fields = ["token_dim", "feature_dim", "num_layers", "data_config", "base_model_fingerprint"]
    # The range of values is of the images that were learned from, not of a backbone.
    seen = replace(DataConfig.from_json(config["data_config"]), values=None)
    theirs = {**config, "data_config": seen.to_json()}
    differ = [name for name in fields if theirs[name] != mine[name]]
    sizes = [entry["data_config"].get("input_size") for entry in (config, mine)]
    if sizes[0] != sizes[1] and "base_model_fingerprint" in differ:
        differ.remove("base_model_fingerprint")  # resampled positions change it, not the model
    if _other_activation(theirs["base_model_name_or_path"], backbone.name):
        differ.append("base_model_name_or_path")
    return "; ".join(
        f"{name}: {_short(theirs[name])} against {_short(mine[name])}" for name in differ
    )


def _other_activation(one: str, other: str) -> bool:
    """Say whether two names are of the same CLIP weights, one of them under QuickGELU.

    timm has such pairs, and an activation has no weights that a fingerprint would tell apart.
    """
    plain = {name.replace(_QUICK, "_clip_") for name in (one, other)}
    return one != other and len(plain) == 1


def _short(value: Any) -> str:
    text = str(value)
    if text.startswith("sha256:"):
        return text[:19]
    # A text may be anything; other values were checked, and their end may be what differs.
    cut = isinstance(value, str) and len(text) > _LONGEST
    return f"{text[:_LONGEST]} ..." if cut else text
