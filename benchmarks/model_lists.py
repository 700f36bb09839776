"""Write docs/model-lists.md: which of timm's and open_clip's models can be prompted, and why not.

Every name of a family that takes prompts, and one name of every other, is made without weights and
without memory. Takes a few minutes: `python -m benchmarks model_lists`.
"""

import argparse
import collections
import importlib.metadata
import warnings
from pathlib import Path

import timm
import torch
from torch.overrides import TorchFunctionMode

from vprompt import VPromptError
from vprompt.backbones._open_clip_models import check_config
from vprompt.backbones._timm_models import check_supported

PAGE = Path(__file__).parents[1] / "docs" / "model-lists.md"
# Families whose names are all tried; one name stands for each of the others.
WHOLE = (
    *("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "deit"),
    *("vision_transformer_sam", "vitamin", "eva", "beit", "naflexvit"),
)
OF_ANY_DEPTH = ("vision_transformer", "vision_transformer_relpos", "deit", "eva", "beit")


class Still(TorchFunctionMode):
    """Leaves tensors without memory as they are, so that models are made in no time."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Skip what writes into a tensor that has no memory."""
        name = getattr(function, "__name__", "")
        writes = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if writes and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))


def families():
    """Return the names of timm's models by the module that makes them."""
    found = collections.defaultdict(list)
    for name in timm.list_models():
        found[timm.models.model_entrypoint(name).__module__.rpartition(".")[2]].append(name)
    return dict(found)


def answer(family, name):
    """Return the class of a model, and "" or the reason why it is refused."""
    shallow = family in OF_ANY_DEPTH and "sapiens2" not in name
    with warnings.catch_warnings(), torch.device("meta"), Still():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, num_classes=0, **({"depth": 1} if shallow else {}))
    try:
        check_supported(model, name)
    except VPromptError as error:
        reason = str(error).partition(") ")[2].partition(". Use a timm model")[0]
        return type(model).__name__, reason.partition(": it lacks")[0]
    return type(model).__name__, ""


def open_clip_answer(name):
    """Return "" or why a config of open_clip is refused."""
    import open_clip

    try:
        with Still():
            check_config(open_clip.get_model_config(name), name)
    except VPromptError as error:
        return str(error).partition("towers: ")[2].partition(". Use a CLIP")[0]
    return ""


def page():
    """Return the page."""
    import open_clip

    versions = [
        f"{each} {importlib.metadata.version(each)}" for each in ("timm", "open_clip_torch")
    ]
    lines = [
        "# Which models can be prompted",
        "",
        f"Made by `python -m benchmarks model_lists` with {' and '.join(versions)}; tests hold it.",
        "",
        "## timm, by the module that makes a model",
        "",
        "| module | names | class | answer |",
        "|---|---|---|---|",
    ]
    for family, names in sorted(families().items()):
        tried = names if family in WHOLE else names[:1]
        found = collections.Counter(answer(family, name) for name in tried)
        for (kind, reason), count in sorted(found.items()):
            number = count if family in WHOLE else len(names)
            lines.append(f"| `{family}` | {number} | {kind} | {reason or 'accepted'} |")
    lines += ["", "## open_clip, by config", "", "| answer | configs |", "|---|---|"]
    told = collections.defaultdict(list)
    for name in open_clip.list_models():
        told[open_clip_answer(name) or "accepted"].append(f"`{name}`")
    lines += [f"| {reason} | {', '.join(names)} |" for reason, names in sorted(told.items())]
    return "\n".join(lines) + "\n"


def main():
    """Write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
