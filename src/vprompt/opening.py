"""Opening: what a person types for a task, a backbone or a device becomes the thing itself."""

import re
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch

from vprompt.artifacts import artifact as artifacts
from vprompt.artifacts import catalogue, hub
from vprompt.artifacts.artifact import Artifact, check_fits
from vprompt.artifacts.catalogue import Pool
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.data import finding, lists, targets, vtab
from vprompt.data.preprocessing import ImageSize, checked, size_of
from vprompt.data.task import Task
from vprompt.learning.adapter import Adapter
from vprompt.learning.checkpoint import restore
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt

_MOST_SETTING = 1024  # numbers up to this are taken from a stranger whatever his tensors are
_PLAIN_MODEL = re.compile(r"\w+(\.\w+)?|[\w-]+,\w+")  # no place on a hub or on disk


def open_task(
    text: str | Task,
    *,
    allow_absent: bool = False,
    all_test: bool = False,
    split_seed: int | None = None,
    target: str | None = None,
) -> Task:
    """Return a task from a spec (`elpv(target=module)`), a folder, or a list of images.

    A folder with a `train800.txt` is read as VTAB-1k, and `folder:prefix` reads
    `prefix_train800.txt` instead. Any other folder holds class folders. A VTAB task is found under
    any of its names: `DIR/cifar100` opens `DIR/cifar`. A folder or list without splits is cut with
    `split_seed`. With `all_test` it is not cut, and all of it is the test split. `target` is what
    the labels of a list are: `class`, `several` or `number`.

    Raises VPromptError if there is no such task, or if classes have no training images, unless
    `allow_absent`.
    """
    made = _open_task(text, allow_absent, all_test, split_seed, target)
    if target and made.target != targets.checked(target):
        raise VPromptError(
            f"Task {made.name!r} has labels of the kind `{made.target}`, and `{target}` is wanted. "
            f"Give a list (.csv, .jsonl, ...) whose labels are that, `table(file=..., "
            f"target={target})`."
        )
    return made


def _open_task(
    text: str | Task,
    allow_absent: bool,
    all_test: bool,
    split_seed: int | None,
    target: str | None,
) -> Task:
    if isinstance(text, Task):
        return text
    path, _, prefix = text.rpartition(":") if ":" in text else (text, "", "")
    plain = Path(text).expanduser()
    usual: dict[str, Any] = {"allow_absent": allow_absent, "all_test": all_test}
    usual |= {} if split_seed is None else {"split_seed": split_seed}
    asked = {"target": targets.checked(target)} if target else {}
    if plain.is_file():
        _check_list(plain)
        return registry.build("tasks", "table")(file=str(plain), **usual, **asked)
    for typed, variant in ((plain, ""), (Path(path).expanduser(), prefix)):
        folder = vtab.find_folder(typed)
        if folder is not None and any(folder.glob("*train800.txt")):
            _check_cut("A VTAB-1k folder", split_seed, ())
            return registry.build("tasks", "vtab")(
                root=str(folder), prefix=variant, allow_absent=allow_absent
            )
    if plain.is_dir():
        return registry.build("tasks", "folder")(root=str(plain), **usual)
    looks_like_a_place = "/" in text or lists.is_list(plain)
    known = registry.names("tasks")
    if not registry.is_spec(text) and (looks_like_a_place or text not in known):
        raise VPromptError(
            f"No file or folder at {text!r}, and no task of that name."
            f"{registry.suggest(text, known)} Or give a folder of class folders, a VTAB-1k folder, "
            "a .csv or .jsonl list."
        )
    build, spec = registry.build("tasks", text), registry.parse(text)
    registry.require("tasks", spec)
    settings = registry.settings("tasks", spec.name)
    _check_cut(f"The task {spec.name}", split_seed, settings)
    if {"fractions", "fold"} & {*spec.settings}:  # whoever says how to cut wants it cut
        del usual["all_test"]
    usual |= asked if spec.name == "table" else {}
    return build(**{k: v for k, v in usual.items() if k in settings and k not in spec.settings})


def check_classes(task: Task, verb: str) -> None:
    """Refuse labels that a verb's formulas have no place for; before the work."""
    if task.target != targets.CLASS:
        raise VPromptError(
            f"Task {task.name!r} has the target `{task.target}`, and {verb} judges by one class an "
            "image. `vprompt learn` takes several classes and numbers (docs/tasks.md)."
        )


def _check_cut(what: str, split_seed: int | None, settings: Container[str]) -> None:
    if split_seed is not None and "split_seed" not in settings:
        raise VPromptError(f"{what} comes in splits of its own. Leave --split-seed out.")


def _check_list(file: Path) -> None:
    """Raise VPromptError unless a file that was named as a task is a list."""
    if lists.is_list(file):
        return
    kind = "is one image" if finding.is_image(file.name) else "is no list of images"
    raise VPromptError(
        f"{file} {kind}. A task is a folder of class folders or a list whose name ends in one of "
        f"{', '.join(lists.SUFFIXES)}; to label single images: `vprompt predict`."
    )


def open_backbone(
    text: str | Backbone,
    *,
    image_size: ImageSize | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Backbone:
    """Return a backbone from a plug-in (`demo`), a spec, or anything that timm can name.

    A name and its weights with a comma between, `ViT-B-16,openai`, is open_clip's. `hf:org/name`
    and `hf:/path` are models that transformers saved. `image_size` is the side of a square in
    pixels, or (height, width). `device` is `auto`, `cpu`, `cuda` or `mps`. `progress` is told how
    the weights were read, if that is worth a sentence.

    Raises VPromptError if the model cannot be prompted, if its weights do not fill it whole, or,
    without a network and within seconds, if they are not on this disk.
    """
    if isinstance(text, Backbone):
        return text
    sizes = {} if image_size is None else {"image_size": checked(image_size)}
    if registry.is_spec(text) or text in registry.names("backbones"):
        backbone = registry.build("backbones", text)(**sizes)
    elif text.startswith("hf:"):
        backbone = registry.find("backbones", "hf")(model=text.removeprefix("hf:"), **sizes)
    else:
        family = "open_clip" if "," in text else "timm_vit"
        backbone = registry.find("backbones", family)(model=text, **sizes)
    if backbone.remark:
        progress.say(backbone.remark)
    return backbone.to(resolve_device(device))


def open_named_backbone(
    config: dict[str, Any],
    *,
    image_size: ImageSize | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Backbone:
    """Return the backbone that an artefact names, at its image size or another.

    The name comes from a stranger's file, so it may be a plug-in without settings or a plain timm
    or open_clip name; a place on disk or on a hub has to be allowed by naming it oneself.
    """
    name = config["base_model_name_or_path"]
    size = size_of(config["data_config"]["input_size"]) if image_size is None else image_size
    spec = registry.parse(name) if registry.is_spec(name) else None
    settings = {"model": name} if spec is None else spec.settings
    harmless = set(settings) <= {"model", "seed"}
    if not harmless or not _PLAIN_MODEL.fullmatch(str(settings.get("model", "none"))):
        raise VPromptError(
            f"The artefact asks for the backbone {name!r}. To allow that, name it yourself: "
            f"--model {name!r}."
        )
    return open_backbone(name, image_size=size, device=device, progress=progress)


def open_pool_backbone(
    pool: Pool,
    model: str | Backbone | None,
    *,
    image_size: ImageSize | None = None,
    exclude: tuple[str, ...] = (),
    device: str = "auto",
    progress: Progress = SILENT,
) -> Backbone:
    """Return the named backbone, or the one that most prompts of the pool name.

    Its images are of the size that most prompts were learned at, unless `image_size` is another.
    """
    configs = [
        entry.config
        for entry in catalogue.entries(pool)
        if entry.config is not None
        and entry.name not in exclude
        and sum(entry.config["num_virtual_tokens"])
    ]
    if not configs:
        held = catalogue.entries(pool)
        without = [f"{each.name}: {each.promptless}." for each in held if each.promptless]
        problems = without or [each.problem for each in held if each.problem]
        raise VPromptError(
            f"The pool {catalogue.describe(pool)} holds no prompt to combine. "
            f"{' '.join(problems[:1])}".strip()
        )
    return open_usual(configs, model, image_size=image_size, device=device, progress=progress)


def open_usual(
    configs: Sequence[dict[str, Any]],
    model: str | Backbone | None,
    *,
    image_size: ImageSize | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Backbone:
    """Return the named backbone, or the one that most artefacts name, at their image size."""
    kinds = [
        (c["base_model_name_or_path"], size_of(c["data_config"]["input_size"])) for c in configs
    ]
    _, usual_size = usual = Counter(kinds).most_common(1)[0][0]
    size = usual_size if image_size is None else image_size
    if model is None:
        named = configs[kinds.index(usual)]
        return open_named_backbone(named, image_size=size, device=device, progress=progress)
    return open_backbone(model, image_size=size, device=device, progress=progress)


def open_artifact(place: Artifact | Path | str, *, progress: Progress = SILENT) -> Artifact:
    """Return the artefact of a folder or of `hf-hub:user/name`; one that is open stays as it is."""
    if isinstance(place, Artifact):
        return place
    return artifacts.load(hub.folder_of(place, progress=progress))


def open_for(
    artifact: Artifact,
    model: str | Backbone | None,
    *,
    device: str = "auto",
    force: bool = False,
    progress: Progress = SILENT,
) -> Backbone:
    """Return the backbone that an artefact names, or the one given in its place.

    It is checked against the artefact's fingerprint and preprocessing, unless `force`.
    """
    if model is None:
        backbone = open_named_backbone(artifact.config, device=device, progress=progress)
    else:
        size = artifact.data_config.image_size
        backbone = open_backbone(model, image_size=size, device=device, progress=progress)
    if not force:
        check_fits(artifact.config, backbone)
    return backbone


def open_adapter(artifact: Artifact, backbone: Backbone) -> Prompt | Adapter | None:
    """Return what an artefact adapts the backbone with: its prompt, or its method's adapter.

    The method's name comes from a stranger's file, so its settings may be numbers, flags and
    plain words; every tensor must have the place and shape that the method gives it.
    """
    if not artifact.state:
        return artifact.prompt
    method = registry.parse(artifact.config["method"])
    for key, value in method.settings.items():
        if isinstance(value, str) and not value.isidentifier():
            raise VPromptError(
                f"The artefact's method {str(method)!r} has the setting {key}={value!r}, which is "
                "not a plain word. Build the adapter yourself and restore its tensors."
            )
    _check_sizes(artifact, method)
    adapter: Adapter = registry.build("adapters", method)(backbone)
    own = {name: tuple(value.shape) for name, value in adapter.state().items()}
    found = {name: tuple(value.shape) for name, value in artifact.state.items()}
    if own != found:
        differ = sorted(name for name in {*own, *found} if own.get(name) != found.get(name))
        raise VPromptError(
            f"The artefact's tensors do not fit its method {str(method)!r} on {backbone.name!r}: "
            f"{', '.join(differ[:3])}. It is damaged, or was written by another version."
        )
    restore(adapter, artifact.state)
    return adapter


def _check_sizes(artifact: Artifact, method: registry.Spec) -> None:
    """Refuse numbers beyond what the tensors can be of, before anything is built by them."""
    longest = max((side for value in artifact.state.values() for side in value.shape), default=0)
    most = max(longest, _MOST_SETTING)
    for key, value in method.settings.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        large = [n for n in numbers if isinstance(n, int) and "seed" not in key and abs(n) > most]
        if large or len(numbers) > _MOST_SETTING:
            told = large[0] if large else f"{len(numbers)} values"
            raise VPromptError(
                f"The artefact's method has the setting {key}={told}, which is more than its "
                f"tensors hold: none has a side of more than {longest}. It is damaged."
            )


def resolve_device(text: str) -> torch.device:
    """Return the device; `auto` takes an accelerator where there is one."""
    if text != "auto":
        try:
            device = torch.device(text)
        except RuntimeError:
            raise VPromptError(f"No device called {text!r}. Try: auto, cpu, cuda.") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise VPromptError("This machine has no CUDA device. Use --device cpu.")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
