"""Predict: labels and probabilities for images of any kind, from artefacts alone."""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprompt.artifacts import hub
from vprompt.core.errors import VPromptError
from vprompt.core.files import write_text
from vprompt.core.plain import in_cell
from vprompt.core.progress import SILENT, Progress
from vprompt.core.settings import takes
from vprompt.data import finding, inputs, lists, pixel_files
from vprompt.data.census import LeftOut, tally
from vprompt.data.images import Pixels, load_pixels
from vprompt.data.lists import Listing
from vprompt.data.preprocessing import DataConfig, Values
from vprompt.inference.answers import Answered, answered
from vprompt.inference.serving import PromptServer, serve
from vprompt.models.heads import Head
from vprompt.opening import open_artifact, open_for
from vprompt.verbs import PredictSettings, TableSettings


@dataclass(frozen=True)
class Prediction:
    """The most probable label of one image, and the probability of every label.

    `image` is the file's path, or `image 0` and so on for images given in memory. Probabilities
    are from 0 to 1. `artifact` is the one that a table names for the image, else None. An artefact
    of several classes per image gives those in `labels`, and one of numbers gives the number in
    `value`. `answers.Answered` says what `label` and `probability` are then.
    """

    image: str
    label: str
    probability: float
    probabilities: dict[str, float]
    artifact: str | None = None
    labels: dict[str, float] | None = None
    value: float | None = None

    @property
    def answer(self) -> Answered:
        """What was said, apart from the image."""
        return Answered(self.label, self.probability, self.probabilities, self.labels, self.value)


@takes(PredictSettings)
def predict(images: Any, settings: PredictSettings) -> list[Prediction]:
    """Return one prediction per image, in their order; one image alone gives a list of one.

    An image is a path, a Pillow image, a NumPy array `[height, width, 3]` or a tensor
    `[3, height, width]`, with whole numbers from 0 to 255 or floats from 0 to 1. Several are a
    list, or have one more axis in front. Folders are searched in the order of names, and lists of
    images are read.

    Each call opens the backbone again: to label images as they come, call `vprompt.load` once and
    then its `predict`.

    Raises VPromptError for images that cannot be read, unless `skip_bad`, and for wrong shapes and
    ranges.
    """
    progress, force = settings.progress, settings.force
    given = _collect(images, progress)
    loaded = open_artifact(settings.artifact, progress=progress)
    backbone = open_for(
        loaded, settings.model, device=settings.device, force=force, progress=progress
    )
    server = PromptServer(backbone, {"": loaded}, force, check=False)
    return _label(server, given, [""] * len(given), settings)


def _collect(images: Any, progress: Progress) -> list[inputs.Given]:
    """Return single images, those of folders and lists among them."""
    singles = inputs.each(images)
    paths = [each for each in singles if isinstance(each, Path | str)]
    if len(paths) == len(singles):
        return list(find_images(paths, progress=progress))
    found: list[inputs.Given] = []
    for each in singles:
        found += find_images([each]) if isinstance(each, Path | str) else [each]
    progress.say(f"{len(found)} images")
    return found


@takes(TableSettings)
def predict_table(table: Path | str, settings: TableSettings) -> list[Prediction]:
    """Return one prediction per row of a list with the columns `image` and `artifact`.

    Paths are relative to the table's folder. All artefacts have to share one backbone. Images of
    several artefacts may share a batch: see `vprompt.PromptServer`.
    """
    files, names = _read_table(Path(table).expanduser())
    server = serve(
        names,
        model=settings.model,
        device=settings.device,
        force=settings.force,
        check=False,
        progress=settings.progress,
    )
    return _label(server, files, names, settings)


def _label(
    server: PromptServer,
    given: Sequence[inputs.Given],
    names: Sequence[str],
    settings: TableSettings,
) -> list[Prediction]:
    """Predict in batches, none of which mixes prompts that stand in different places.

    So an image has one answer whatever else is asked for; docs/concepts.md says how exactly. Rows
    of one artefact stand together, so that few share a batch.
    """
    progress = settings.progress
    pixels = _decode(server, given, names, settings.skip_bad, progress)
    mine = [names[index] for index in pixels.kept]
    # Rows of one table: a small tensor for each image among the large ones of a batch would keep
    # the heap from ever shrinking.
    widest = max(len(each.classes) for each in server.artifacts.values())
    shares = np.zeros((len(mine), widest), dtype=np.float32)
    with progress.step("predict", len(mine)) as step:
        parts = list(_batches(server, mine, settings.batch_size))
        for rows, copy in pixel_files.batches(pixels.array, parts):
            images = server.backbone.normalise(torch.from_numpy(copy).to(server.backbone.device))
            wanted = [mine[row] for row in rows]
            logits = server.logits(images, wanted, precision=settings.precision)
            for row, each in zip(rows, logits, strict=True):
                head = server.artifacts[mine[row]].head
                shares[row, : len(each)] = _shares(head, each, mine[row])
            step.advance(len(rows))
    found = []
    for row, index in enumerate(pixels.kept):
        made = server.artifacts[names[index]]
        said = answered(made.head, made.classes, shares[row, : len(made.classes)].tolist())
        title = given[index] if isinstance(given[index], Path) else f"image {index}"
        sure = (said.label, said.probability, said.probabilities)
        name = names[index] or None
        found.append(Prediction(str(title), *sure, name, said.labels, said.value))
    return found


def _shares(head: Head, logits: Tensor, name: str) -> NDArray[np.float32]:
    """Return probabilities, or the number itself where that is what the head gives.

    An artefact may hold numbers that no model can compute with.
    """
    if not bool(torch.isfinite(logits).all()):
        raise VPromptError(
            f"The artefact{f' {name!r}' if name else ''} gives no numbers (NaN or infinity) for an "
            "image: its values are too large for the backbone, so it is damaged or made to harm."
        )
    outputs = logits.float() if head.numbers else head.probabilities(logits.float())
    shares: NDArray[np.float32] = outputs.cpu().numpy()
    return shares


def _decode(
    server: PromptServer,
    given: Sequence[inputs.Given],
    names: Sequence[str],
    skip_bad: bool,
    progress: Progress,
) -> Pixels:
    """Return the pixels of all images, each by the range of values of its artefact."""
    config = next(iter(server.artifacts.values())).data_config
    ranges = [server.artifacts[name].data_config.values for name in names]
    files = [row for row, image in enumerate(given) if isinstance(image, Path)]
    if len(files) == len(given) and len(set(ranges)) == 1:
        shared = ranges[0] or Values()
        paths = [image for image in given if isinstance(image, Path)]
        return load_pixels(paths, config, values=shared, skip_bad=skip_bad, progress=progress)
    parts = []
    for each in dict.fromkeys(ranges[row] for row in files):
        rows = [row for row in files if ranges[row] == each]
        some = [Path(str(given[row])) for row in rows]
        found = load_pixels(
            some, config, values=each or Values(), skip_bad=skip_bad, progress=progress
        )
        parts += [(rows[row], found.array[place]) for place, row in enumerate(found.kept)]
    for row in sorted(set(range(len(given))) - set(files)):
        parts.append((row, _in_memory(given[row], replace(config, values=ranges[row]), row)))
    parts.sort(key=lambda part: part[0])
    return Pixels(np.stack([array for _, array in parts]), tuple(row for row, _ in parts), "")


def _in_memory(image: inputs.Given, config: DataConfig, row: int) -> NDArray[np.uint8]:
    """Return the pixels of one image; what is wrong with it is said with its place."""
    try:
        return inputs.pixels(image, config)
    except VPromptError as error:
        raise VPromptError(f"Image {row}: {error}") from None


def _batches(server: PromptServer, names: Sequence[str], size: int) -> Iterator[list[int]]:
    """Yield the rows of every batch: those of one layout of tokens, sorted by artefact."""
    layouts = {name: server.layout(name) for name in set(names)}
    order = sorted(range(len(names)), key=lambda row: (layouts[names[row]], names[row]))
    for _, group in itertools.groupby(order, key=lambda row: layouts[names[row]]):
        rows = list(group)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _read_table(table: Path) -> tuple[list[Path], list[str]]:
    """Return the image and the artefact of every row."""
    listing = lists.read(table)
    columns = [listing.column(role) for role in ("image", "artifact")]
    if None in columns:
        raise VPromptError(
            f"{table} has the columns {list(listing.columns)}, but needs `image` and `artifact`: "
            "the image files, and the artefact folder to label each with. To label all of them "
            "with one, add --artifact FOLDER."
        )
    image, column = map(str, columns)
    names = []
    for row in listing.rows:
        name = str(listing.cell(row, column))
        names.append(name if hub.is_hub(name) else str(table.parent / name))
    return listing.images(image), names


def find_images(given: Sequence[Path | str], *, progress: Progress = SILENT) -> list[Path]:
    """Return the image files of files, folders and lists; a place without any is an error."""
    found: list[Path] = []
    left: list[LeftOut] = []
    for place in (Path(each).expanduser() for each in given):
        if place.is_dir():
            folder = finding.find(place)
            found += folder.all_images()
            left += folder.all_left_out()
        elif lists.is_list(place) and place.is_file():
            found += _listed(lists.read(place))
        elif place.is_file():
            found.append(place)
        else:
            raise VPromptError(f"No image file or folder at {place}.")
    if not found:
        raise VPromptError("There are no images to predict. Name files, folders or lists.")
    progress.say(f"{len(found)} images")
    if left:
        progress.say(f"left out: {'; '.join(map(str, tally(left)))}")
    return found


def _listed(listing: Listing) -> list[Path]:
    """Return the images of a list; one that names artefacts is not for a single artefact."""
    if listing.column("artifact") is not None:
        raise VPromptError(
            f"{listing.file} names an artefact for every image. Leave out --artifact to use those, "
            "or the column to use one for all."
        )
    column = listing.column("image")
    if column is None and len(listing.columns) == 1:
        column = listing.columns[0]  # whatever it is called
    if column is None:
        raise VPromptError(
            f"{listing.file} has the columns {list(listing.columns)}, and none of them is known as "
            "that of the images. Call it `image`."
        )
    return listing.images(column)


def write(predictions: Sequence[Prediction], path: Path) -> None:
    """Write a .csv or a .json file, atomically.

    A .csv has one column per label, unless a table named artefacts, whose labels may differ.
    Several labels have `|` between them, and `[]` stands for none, as `table` reads it. A name that
    a spreadsheet would compute has an apostrophe before it there; a .json has it as is.
    """
    if path.suffix == ".json":
        write_text(path, as_json(predictions) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(_rows(predictions))
    write_text(path, text.getvalue())


def _rows(predictions: Sequence[Prediction]) -> Iterator[list[str]]:
    """Yield the rows of a .csv, its header first."""
    first = predictions[0]
    if first.artifact is not None:
        yield ["image", "artifact", "label", "probability"]
        for one in predictions:
            cells = [in_cell(each) for each in (one.image, one.artifact or "", one.label)]
            sure = one.labels is None and one.value is None
            yield [*cells, f"{one.probability:.6f}" if sure else ""]
        return
    if first.value is not None:
        yield ["image", "value"]
        yield from ([in_cell(one.image), repr(one.value)] for one in predictions)
        return
    names, plain = list(first.probabilities), first.labels is None
    beside = ["probability"] if plain else []
    yield ["image", "label", *beside, *(f"p({name})" for name in names)]
    for one in predictions:
        shares = [f"{one.probabilities[name]:.6f}" for name in names]
        first_share = [f"{one.probability:.6f}"] if plain else []
        yield [in_cell(one.image), in_cell(one.label), *first_share, *shares]


def as_json(predictions: Sequence[Prediction]) -> str:
    """Return a JSON list of objects."""
    objects = []
    for one in predictions:
        named = {} if one.artifact is None else {"artifact": one.artifact}
        objects.append({"image": one.image, **one.answer.to_json(), **named})
    return json.dumps(objects, indent=2)
