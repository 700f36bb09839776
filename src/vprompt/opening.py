"""Opening: what a person types for a task, a backbone or a device becomes the thing itself."""

from pathlib import Path
from typing import Any

import torch

from vprompt import registry
from vprompt.backbone import Backbone
from vprompt.errors import VPromptError
from vprompt.task import Task

_TABLES = (".csv", ".tsv", ".jsonl")


def open_task(text: str | Task, *, allow_absent: bool = False) -> Task:
    """Return a task from a spec (`elpv(target=module)`), a folder, or a CSV or JSONL list.

    A folder with a `train800.txt` is read as VTAB-1k; `folder:prefix` reads `prefix_train800.txt`
    instead; any other folder holds class folders.
    """
    if isinstance(text, Task):
        return text
    path, _, prefix = text.rpartition(":") if ":" in text else (text, "", "")
    plain = Path(text).expanduser()
    if plain.is_file() and plain.suffix.lower() in _TABLES:
        return registry.build("tasks", "table")(file=str(plain), allow_absent=allow_absent)
    for folder, variant in ((plain, ""), (Path(path).expanduser(), prefix)):
        if folder.is_dir() and any(folder.glob("*train800.txt")):
            return registry.build("tasks", "vtab")(
                root=str(folder), prefix=variant, allow_absent=allow_absent
            )
    if plain.is_dir():
        return registry.build("tasks", "folder")(root=str(plain), allow_absent=allow_absent)
    if "/" in text and "(" not in text:
        raise VPromptError(
            f"Nothing at {text!r}. Give a folder of class folders, a VTAB-1k folder, a .csv or "
            f".jsonl list, or one of: {', '.join(registry.names('tasks'))}."
        )
    build = registry.build("tasks", text)
    registry.require("tasks", registry.parse(text))
    return build()


def open_backbone(
    text: str | Backbone, *, image_size: int | None = None, device: str = "auto"
) -> Backbone:
    """Return a backbone from a plug-in (`demo`), a spec, or anything that timm can name."""
    if isinstance(text, Backbone):
        return text
    sizes: dict[str, Any] = {"image_size": image_size} if image_size else {}
    is_spec = "(" in text or text in registry.names("backbones")
    if is_spec:
        backbone = registry.build("backbones", text)(**sizes)
    else:
        backbone = registry.find("backbones", "timm_vit")(model=text, **sizes)
    return backbone.to(resolve_device(device))


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
