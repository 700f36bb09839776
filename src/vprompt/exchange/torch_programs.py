"""Torch programs: what `torch.export` traces, in a `.pt2` file."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.exchange.whole import Whole

_FACTS = "vprompt.json"


def traced(whole: Whole) -> Any:
    """Return the program of a module; a method that does other things with every image has none."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(
                whole, (whole.example(),), dynamic_shapes=(whole.dynamic(),), strict=False
            )
    except Exception as error:  # the tracer raises a dozen kinds of errors
        adapter = whole.classifier.adapter
        method = "a prompt" if adapter is None else type(adapter).__name__
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise VPromptError(
            f"This artefact cannot be exported: torch cannot trace {method} on "
            f"{whole.backbone.name!r} as one program for batches of any size ({first}). Use it "
            "with `vprompt predict` or `vprompt serve`."
        ) from error


def write(whole: Whole, path: Path, facts: dict[str, str]) -> None:
    """Write the program, and what whoever uses it has to know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(traced(whole), path, extra_files={_FACTS: json.dumps(facts)})


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the program of a file that was just written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(images)
        return found

    return run
