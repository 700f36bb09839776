"""Predict: labels and probabilities for image files, from artefacts alone."""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vprompt import artifact as artifacts
from vprompt import hub
from vprompt.artifact import Artifact
from vprompt.backbone import Backbone
from vprompt.errors import VPromptError
from vprompt.files import write_text
from vprompt.images import SUFFIXES, load_pixels
from vprompt.opening import open_for
from vprompt.progress import SILENT, Progress
from vprompt.serving import PromptServer, serve

TABLES = (".csv", ".tsv")
_ARTIFACT = ("artifact", "artefact")


@dataclass(frozen=True)
class Prediction:
    """The most probable label of one image, and the probability of every label.

    `artifact` is the one that a table names for the image.
    """

    image: str
    label: str
    probability: float
    probabilities: dict[str, float]
    artifact: str | None = None


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
    server = PromptServer(backbone, {"": loaded}, force)
    return _label(server, files, [""] * len(files), precision, batch_size, skip_bad, progress)


def predict_table(
    table: Path | str,
    *,
    model: str | Backbone | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> list[Prediction]:
    """Return one prediction per row of a CSV or TSV file with the columns `image` and `artifact`.

    Paths are relative to the table's folder. All artefacts share one backbone, and images of many
    of them one batch: see `serving.PromptServer`.
    """
    files, names = _read_table(Path(table))
    server = serve(names, model=model, device=device, force=force, progress=progress)
    return _label(server, files, names, precision, batch_size, skip_bad, progress)


def _label(
    server: PromptServer,
    files: Sequence[Path],
    names: Sequence[str],
    precision: str,
    batch_size: int,
    skip_bad: bool,
    progress: Progress,
) -> list[Prediction]:
    """Predict in batches, none of which mixes prompts that stand in different places.

    So an image has one answer whatever else is asked for; docs/concepts.md says how exactly. Rows
    of one artefact stand together, so that few share a batch.
    """
    config = next(iter(server.artifacts.values())).data_config
    pixels = load_pixels(files, config, skip_bad=skip_bad, progress=progress)
    mine = [names[index] for index in pixels.kept]
    shares: dict[int, Tensor] = {}
    with progress.step("predict", len(mine)) as step:
        for rows in _batches(server, mine, batch_size):
            images = server.backbone.normalise(
                torch.from_numpy(pixels.array[rows]).to(server.backbone.device)
            )
            logits = server.logits(images, [mine[row] for row in rows], precision=precision)
            shares |= {row: each.softmax(0) for row, each in zip(rows, logits, strict=True)}
            step.advance(len(rows))
    found = []
    for row, index in enumerate(pixels.kept):
        classes = server.artifacts[names[index]].classes
        values = dict(zip(classes, shares[row].tolist(), strict=True))
        best = classes[int(shares[row].argmax())]
        found.append(
            Prediction(str(files[index]), best, values[best], values, names[index] or None)
        )
    return found


def _batches(server: PromptServer, names: Sequence[str], size: int) -> Iterator[list[int]]:
    """Yield the rows of every batch: those of one layout of tokens, sorted by artefact."""
    layouts = {name: server.layout(name) for name in set(names)}
    order = sorted(range(len(names)), key=lambda row: (layouts[names[row]], names[row]))
    for _, group in itertools.groupby(order, key=lambda row: layouts[names[row]]):
        rows = list(group)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _read_table(table: Path) -> tuple[list[Path], list[str]]:
    """Return the image and the artefact of every row."""
    if not table.is_file():
        raise VPromptError(f"No table at {table}.")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise VPromptError(f"{table} is not UTF-8 text. Save it as UTF-8.") from None
    try:
        files, names = _rows_of(table, text)
    except csv.Error as error:
        raise VPromptError(f"{table} cannot be read: {error}.") from None
    if not files:
        raise VPromptError(f"{table} lists no images.")
    return files, names


def _rows_of(table: Path, text: str) -> tuple[list[Path], list[str]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if table.suffix == ".tsv" else ","
    )
    heads = [head.strip() for head in reader.fieldnames or ()]
    column = next((name for name in _ARTIFACT if name in heads), None)
    if "image" not in heads or column is None:
        raise VPromptError(
            f"{table} has the columns {heads}, but needs `image` and `artifact`: the image "
            "files, and the artefact folder to label each with."
        )
    reader.fieldnames = heads
    files, names = [], []
    for row in reader:
        image, name = (row[key] or "" for key in ("image", column))
        if not image.strip() or not name.strip():
            raise VPromptError(f"{table}, line {reader.line_num}: image or artifact is empty.")
        files.append(table.parent / image.strip())
        local = not name.strip().startswith(hub.PREFIX)
        names.append(str(table.parent / name.strip()) if local else name.strip())
    return files, names


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
    """Write a .csv or a .json file, atomically.

    A .csv has one column per label, unless a table named artefacts, whose labels may differ.
    """
    if path.suffix == ".json":
        write_text(path, as_json(predictions) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if predictions[0].artifact is not None:
        writer.writerow(["image", "artifact", "label", "probability"])
        for one in predictions:
            writer.writerow([one.image, one.artifact, one.label, f"{one.probability:.6f}"])
        write_text(path, text.getvalue())
        return
    labels = list(predictions[0].probabilities)
    writer.writerow(["image", "label", "probability", *(f"p({label})" for label in labels)])
    for one in predictions:
        shares = [f"{one.probabilities[label]:.6f}" for label in labels]
        writer.writerow([one.image, one.label, f"{one.probability:.6f}", *shares])
    write_text(path, text.getvalue())


def as_json(predictions: Sequence[Prediction]) -> str:
    """Return a JSON list of objects."""
    objects = [asdict(one) for one in predictions]
    return json.dumps(
        [{k: v for k, v in each.items() if v is not None} for each in objects], indent=2
    )
