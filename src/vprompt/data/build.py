"""Build: a VTAB-1k folder from one of torchvision's data sets, without loss.

Files are copied byte by byte; arrays become PNG. Images are named as in the shared copy of
VTAB-1k, and `origin.tsv` says what each of them was called before.
"""

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vprompt.core import files
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.data.examples import Chosen, choose, seeded_order, tfds_order
from vprompt.data.source import Example, Source
from vprompt.data.sources import named_task, open_source
from vprompt.data.vtab import VtabTask

_VERSION = "1"  # of what is written
_OTHER = "the official examples are replaced by others, drawn by a seed"
_SMALL = "{split} has {found} images, not {wanted}: the data set is not whole"


def build(
    name: str,
    *,
    root: Path,
    output: Path,
    seed: int | None = None,
    download: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> tuple[Path, dict[str, Any]]:
    """Write the VTAB task `name` to the folder `output/ID` and return it with its `meta.json`.

    `root` is where torchvision keeps or downloads its data. Without a `seed` the examples are
    VTAB-1k's own wherever they can be known, and where not, they are drawn with seed 0; with one,
    all are drawn. Stopped and started again it continues; built already, it returns at once.
    """
    task = named_task(name)
    source = open_source(task, root, download=download, seed=seed or 0)
    order = tfds_order if seed is None else seeded_order(seed)
    chosen = choose(task, {part: source.parts[part].keys for part in source.parts}, order)
    meta = _describe(task, source, chosen, seed)
    folder = output / task.id
    if folder.is_dir() and not overwrite and _same(folder, meta):
        progress.say(f"{folder} is built already")
        return folder, meta
    with files.resumable_folder(folder, meta["identity"], overwrite=overwrite) as draft:
        for torn in (draft / "images").rglob(".*"):  # what a killed process was writing
            torn.unlink()
        lists = _write_images(draft, source, chosen, progress)
        _write_lists(draft, lists, source, chosen)
        files.write_json(draft / "meta.json", meta)
    return folder, meta


def _describe(
    task: VtabTask, source: Source, chosen: Mapping[str, Chosen], seed: int | None
) -> dict[str, Any]:
    sizes = {"train800": (800,), "val200": (200,), "test": task.test_images}
    deviations = list(source.deviations) + ([] if seed is None else [_OTHER])
    small = [
        _SMALL.format(split=split, found=len(chosen[split].rows), wanted=wanted[0])
        for split, wanted in sizes.items()
        if len(chosen[split].rows) not in wanted
    ]
    official = not (source.drawn or small or seed is not None)
    keys = [
        f"{split} {part.part} {source.parts[part.part].keys[row]}"
        for split, part in chosen.items()
        for row in part.rows
    ]
    return {
        "vtab": task.id,
        "title": task.title,
        "group": task.group,
        "source": f"torchvision {importlib.metadata.version('torchvision')}, {source.name}",
        "official_examples": official,
        "order": "TFDS's" if seed is None else f"drawn with seed {seed}",
        "seed_of_what_is_drawn": (seed or 0) if source.drawn or seed is not None else None,
        "splits": {
            split: {"from": part.rule, "images": len(part.rows)} for split, part in chosen.items()
        },
        "deviations": deviations + small,
        "identity": files.digest(_VERSION, task.id, *keys),
    }


def _same(folder: Path, meta: Mapping[str, Any]) -> bool:
    there = folder / "meta.json"
    return there.is_file() and files.read_json(there).get("identity") == meta["identity"]


def _write_images(
    draft: Path, source: Source, chosen: Mapping[str, Chosen], progress: Progress
) -> dict[str, list[tuple[str, int]]]:
    """Write what is not there yet, and return the name and label of every image."""
    lists: dict[str, list[tuple[str, int]]] = {}
    total = sum(len(part.rows) for part in chosen.values())
    with progress.step("write images", total) as step:
        for split, part in chosen.items():
            (draft / "images" / split).mkdir(parents=True, exist_ok=True)
            lists[split] = []
            for number, row in enumerate(part.rows):
                image, label = _fetch(source, part, row)
                suffix = image.suffix.lower() if isinstance(image, Path) else ".png"
                name = f"images/{split}/{number:06d}{suffix}"
                if not (draft / name).is_file():  # each appears only when it is whole
                    _write_image(draft / name, image)
                lists[split].append((name, label))
                step.advance(1, split)
    return lists


def _fetch(source: Source, part: Chosen, row: int) -> Example:
    data = source.parts[part.part]
    try:
        image, label = data.fetch(row)
    except OSError as error:
        raise VPromptError(f"{source.name} cannot be read at {data.keys[row]}: {error}.") from None
    if isinstance(image, Path) and not image.is_file():
        raise VPromptError(
            f"{source.name} names {image}, which is not there. Remove what torchvision unpacked "
            "and run the command again with --download."
        )
    return image, label


def _write_image(target: Path, image: Path | Image.Image) -> None:
    with files.atomic_file(target) as draft:
        if isinstance(image, Path):
            shutil.copyfile(image, draft)
        else:
            image.save(draft, "PNG")


def _write_lists(
    draft: Path,
    lists: Mapping[str, Sequence[tuple[str, int]]],
    source: Source,
    chosen: Mapping[str, Chosen],
) -> None:
    whole = {**lists, "train800val200": [*lists["train800"], *lists["val200"]]}
    for split, lines in whole.items():
        text = "".join(f"{name} {label}\n" for name, label in lines)
        files.write_text(draft / f"{split}.txt", text)
    names = "".join(f"{number} {name}\n" for number, name in enumerate(source.classes))
    files.write_text(draft / "classes.txt", names)
    origin = [
        f"{name}\t{part.part}\t{source.parts[part.part].keys[row]}\n"
        for split, part in chosen.items()
        for (name, _), row in zip(lists[split], part.rows, strict=True)
    ]
    files.write_text(draft / "origin.tsv", "image\tpart\tkey\n" + "".join(origin))
