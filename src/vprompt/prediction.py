"""Predict: labels and probabilities for image files, from an artefact alone."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vprompt import artifact as artifacts
from vprompt import hub
from vprompt.artifact import Artifact
from vprompt.backbone import Backbone
from vprompt.errors import VPromptError
from vprompt.files import write_text
from vprompt.images import SUFFIXES, load_pixels
from vprompt.measure import features_of
from vprompt.opening import open_adapter, open_for
from vprompt.progress import SILENT, Progress
from vprompt.task import Examples


@dataclass(frozen=True)
class Prediction:
    """The most probable label of one image, and the probability of every label."""

    image: str
    label: str
    probability: float
    probabilities: dict[str, float]


def predict(
    images: Sequence[Path | str],
    *,
    artifact: Artifact | Path | str,
    model: str | Backbone | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> list[Prediction]:
    """Return one prediction per image file; folders are searched, in name order.

    The backbone is the one that the artefact names, unless `model` gives another; it is checked
    against the artefact's fingerprint, unless `force`.
    """
    files = find_images(images)
    if isinstance(artifact, Artifact):
        loaded = artifact
    else:
        loaded = artifacts.load(hub.folder_of(artifact, progress=progress))
    backbone = open_for(loaded, model, device=device, force=force)
    pixels = load_pixels(files, loaded.data_config, skip_bad=skip_bad, progress=progress)
    examples = Examples(pixels.array, torch.zeros(len(pixels), dtype=torch.long), pixels.digest)
    adapted = open_adapter(loaded, backbone)
    features = features_of(
        backbone, adapted, examples, batch_size=batch_size, precision=precision, use_cache=False
    )
    classes = loaded.classes
    shares = torch.softmax(loaded.head.logits(features), 1)
    found = []
    for row, index in enumerate(pixels.kept):
        values = dict(zip(classes, shares[row].tolist(), strict=True))
        best = classes[int(shares[row].argmax())]
        found.append(Prediction(str(files[index]), best, values[best], values))
    return found


def find_images(given: Sequence[Path | str]) -> list[Path]:
    """Return the image files among files and folders; a place without any is an error."""
    found: list[Path] = []
    for place in map(Path, given):
        if place.is_dir():
            inside = sorted(
                p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not inside:
                raise VPromptError(f"The folder {place} holds no image files.")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise VPromptError(f"No image file or folder at {place}.")
    if not found:
        raise VPromptError("There are no images to predict. Name files or folders.")
    return found


def write(predictions: Sequence[Prediction], path: Path) -> None:
    """Write a .csv (one column per label) or a .json file, atomically."""
    if path.suffix == ".json":
        write_text(path, as_json(predictions) + "\n")
        return
    text = io.StringIO()
    labels = list(predictions[0].probabilities)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "probability", *(f"p({label})" for label in labels)])
    for one in predictions:
        shares = [f"{one.probabilities[label]:.6f}" for label in labels]
        writer.writerow([one.image, one.label, f"{one.probability:.6f}", *shares])
    write_text(path, text.getvalue())


def as_json(predictions: Sequence[Prediction]) -> str:
    """Return a JSON list of objects."""
    return json.dumps([asdict(one) for one in predictions], indent=2)
