"""Export: an artefact and its backbone as one model of another program, checked before it is there.

What was written is opened by that other program, or by torch, and compared with vprompt on real
images; where they differ, no file is left.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vprompt.artifacts.artifact import Artifact
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.data.decoding import fit
from vprompt.data.targets import NUMBER
from vprompt.exchange import onnx_files, timm_folders, torch_programs
from vprompt.exchange.pictures import real_images
from vprompt.exchange.whole import Whole
from vprompt.models.backbone import Backbone
from vprompt.opening import open_artifact, open_for

Runner = Callable[[Tensor], Tensor]
TARGETS = {"onnx": ".onnx", "torch": ".pt2", "safetensors-timm": ""}
TOLERANCE = 1e-4  # of logits, as a share of the largest where that is above 1
_ROUNDS = 3


@dataclass(frozen=True)
class Exported:
    """What was written, how large and how fast it is, and how near to vprompt's own answers.

    `difference` is the largest between logits on `images` images; `seconds` and `own_seconds` are
    for one batch of them, the exported model's and vprompt's. `resize_difference` is the largest
    between probabilities where the model resizes instead of Pillow, None where it does not. With a
    `blank_head` all logits are 0, and equal ones prove nothing.
    """

    target: str
    path: str
    bytes: int
    images: int
    difference: float
    seconds: float
    own_seconds: float
    opset: int | None = None
    blank_head: bool = False
    external_data: str | None = None
    resize_difference: float | None = None


def export(
    artifact: Artifact | Path | str,
    *,
    to: str,
    output: Path | None = None,
    model: str | Backbone | None = None,
    images: Sequence[Path] = (),
    preprocess: bool = False,
    opset: int = onnx_files.OPSET,
    external_data: bool | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write one model with backbone, prompt and head, and return what was measured of it.

    `to` is `onnx`, `torch` (a program of `torch.export`) or `safetensors-timm` (a folder that timm
    opens, where no prompt is left). `images` are compared on; without them, photographs that
    scikit-learn ships. `external_data` puts the weights of an ONNX file beside it; None does where
    they are too large for one file.
    """
    if to not in TARGETS:
        raise VPromptError(f"--to is one of {', '.join(TARGETS)}, but got {to!r}.")
    if preprocess and to == "safetensors-timm":
        raise VPromptError(
            "timm keeps preprocessing beside a model and not in it: config.json will hold it. "
            "Leave --preprocess out."
        )
    loaded = open_artifact(artifact, progress=progress)
    target = _free_place(loaded, to, output, overwrite)
    pictures = real_images(images, loaded.data_config)
    backbone = open_for(loaded, model, device="cpu", force=force, progress=progress)
    whole = Whole(loaded, backbone, preprocess=preprocess)
    facts = _facts(loaded, preprocess)
    with _draft_beside(target) as folder, progress.step("export", 2) as step:
        draft = folder / target.name
        opened: Runner
        extra: dict[str, Any] = {"blank_head": not loaded.head.weight.any().item()}
        if to == "onnx":
            chosen = onnx_files.write(whole, draft, facts, opset=opset, external_data=external_data)
            extra |= {"opset": opset, "external_data": f"{target.name}.data" if chosen else None}
            opened = onnx_files.opened(draft)
        elif to == "torch":
            torch_programs.write(whole, draft, facts)
            opened = torch_programs.opened(draft)
        else:
            timm_folders.write(loaded, whole, draft)
            opened = timm_folders.opened(draft)
        step.advance(note="compare")
        found = _compared(whole, opened, pictures, to)
        if preprocess:
            extra["resize_difference"] = _resize_difference(whole, opened, pictures)
        step.advance()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        _move(folder, target)
    return Exported(to, str(target), size, len(pictures), *found, **extra)


def _free_place(artifact: Artifact, to: str, output: Path | None, overwrite: bool) -> Path:
    """Return where to write, which is free or may be replaced."""
    ending = TARGETS[to]
    usual = f"{artifact.name or 'artefact'}{ending or '-timm'}"
    target = Path(usual) if output is None else Path(output).expanduser()
    if ending and target.suffix != ending:
        raise VPromptError(
            f"A model for {to} is a {ending} file, but got {str(target)!r}. Name it "
            f"{str(target.with_suffix(ending))!r}."
        )
    there = target.is_dir() and any(target.iterdir()) if not ending else target.exists()
    if (there and not overwrite) or (target.exists() and target.is_dir() == bool(ending)):
        raise VPromptError(
            f"{target} exists already. Choose another --output, or add --overwrite to replace it."
        )
    if target.is_dir():
        timm_folders.check_replaceable(target)
    return target


@contextlib.contextmanager
def _draft_beside(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target that is gone afterwards, whatever happened."""
    made = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
        yield Path(made)
    except OSError as error:
        raise VPromptError(
            f"Could not write {target}: {error.strerror or error}. Nothing was left half-written; "
            "choose another --output."
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    """Put what a draft folder holds at its place; the file that names the others last."""
    if (folder / target.name).is_dir() and target.is_dir():
        shutil.rmtree(target)
    for each in sorted(folder.iterdir(), key=lambda path: path.name == target.name):
        os.replace(each, target.parent / each.name)


def _facts(artifact: Artifact, preprocess: bool) -> dict[str, str]:
    """Return what whoever uses the model has to know, as texts."""
    from vprompt import __version__

    config = artifact.config
    return {
        "vprompt_version": __version__,
        "backbone": str(config["base_model_name_or_path"]),
        "backbone_fingerprint": str(config["base_model_fingerprint"]),
        "label_names": json.dumps(artifact.classes),
        "data_config": json.dumps(config["data_config"]),
        "input": "uint8 RGB pixels [batch, height, width, 3] of any size"
        if preprocess
        else "images [batch, 3, height, width], resized and normalised as data_config says",
        **_answers(artifact),
    }


def _answers(artifact: Artifact) -> dict[str, str]:
    """Return what the model gives, and how labels are made of it."""
    head = artifact.head
    if head.target == NUMBER:
        return {"output": "numbers [batch, 1], as they were learned"}
    if head.thresholds is not None:
        limits = json.dumps(artifact.config["thresholds"])
        return {
            "output": "logits [batch, classes]; their sigmoid are the probabilities, and an image "
            "has every class whose probability is at least its threshold",
            "thresholds": limits,
        }
    made = "sigmoid" if head.sigmoid else "softmax"
    return {"output": f"logits [batch, classes]; their {made} are the probabilities"}


def _inputs(whole: Whole, pictures: Sequence[Any]) -> list[Tensor]:
    """Return batches of one shape each."""
    if whole.resizing is not None:
        return [torch.from_numpy(np.array(image))[None] for image in pictures]
    config = whole.backbone.data_config
    pixels = torch.from_numpy(np.stack([fit(image, config) for image in pictures]))
    return [whole.backbone.normalise(pixels)]


def _compared(
    whole: Whole, opened: Runner, pictures: Sequence[Any], to: str
) -> tuple[float, float, float]:
    """Return the largest difference of logits, and the seconds of the exported model and ours."""
    batches = _inputs(whole, pictures)
    with torch.no_grad():
        ours = torch.cat([whole(batch) for batch in batches])
    theirs = torch.cat([opened(batch) for batch in batches])
    difference = (ours - theirs).abs().max().item()
    least = 0.0 if whole.head.numbers else 1.0  # numbers may all be small
    allowed = TOLERANCE * max(least, ours.abs().max().item())
    if not difference <= allowed:
        raise VPromptError(
            f"The model for {to} was checked on {len(pictures)} images, and its logits differ from "
            f"vprompt's by {difference:.2g}, more than {allowed:.2g}. It was not kept. Report "
            "this, with the artefact and the versions of torch and onnxruntime."
        )
    if sum(len(batch) for batch in batches) > 1:
        one = opened(batches[0][:1])  # a batch of another size than it was traced with
        if not (one - ours[:1]).abs().max().item() <= allowed:
            raise VPromptError(f"The model for {to} answers otherwise in another batch. Not kept.")
    with torch.no_grad():
        own_seconds = _seconds(lambda: [whole(batch) for batch in batches])
    return difference, _seconds(lambda: [opened(batch) for batch in batches]), own_seconds


def _resize_difference(whole: Whole, opened: Runner, pictures: Sequence[Any]) -> float:
    """Return how far probabilities, or numbers, are from those of images that Pillow resized."""
    plain = [
        whole.backbone.normalise(torch.from_numpy(fit(image, whole.resizing.config).copy())[None])
        for image in pictures
        if whole.resizing is not None
    ]
    resizing, whole.resizing = whole.resizing, None
    with torch.no_grad():
        by_pillow = torch.cat([whole(image) for image in plain])
    whole.resizing = resizing
    inside = torch.cat([opened(batch) for batch in _inputs(whole, pictures)])
    if not whole.head.numbers:
        by_pillow, inside = map(whole.head.probabilities, (by_pillow, inside))
    return (by_pillow - inside).abs().max().item()


def _seconds(work: Callable[[], object]) -> float:
    """Return the least time of a few rounds, after one to get warm."""
    work()
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def lines(found: Exported) -> list[str]:
    """Return what a person wants to know of an export, one line each."""
    per = 1000 / found.images
    said = [
        f"{found.path}: {found.bytes / 2**20:.1f} MiB",
        f"checked on {found.images} images: logits within {found.difference:.1e} of vprompt's",
        f"speed on this machine: {found.seconds * per:.1f} ms an image, vprompt "
        f"{found.own_seconds * per:.1f} ms",
    ]
    if found.opset is not None:
        beside = f", weights beside it in {found.external_data}" if found.external_data else ""
        said.insert(1, f"ONNX opset {found.opset}, batches of any size{beside}")
    if found.blank_head:
        said.append(
            "its head is all zeros, so that equal logits say nothing of what comes before it"
        )
    if found.resize_difference is not None:
        said.append(
            f"its own resize moves what it says by {found.resize_difference:.1e} at most, "
            "against Pillow's"
        )
    return said
