"""The eleven data sets of CoOp's protocol on disk, and how their splits are written down."""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.registry import suggest
from vprompt.data import lists
from vprompt.data.finding import is_hidden, is_image, same_text
from vprompt.data.sentences import GENERIC

Item = tuple[str, int, str]  # image path below the image folder, label, class name
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Listing:
    """The images of every split as the data set's authors fixed them; `digest` is of that text.

    ImageNet's variants have a test split alone.
    """

    name: str
    images: Path
    splits: dict[str, list[Item]]
    classes: tuple[str, ...]
    template: str
    digest: str


@dataclass(frozen=True)
class _Place:
    folder: str
    images: str
    split: str  # the file, or `fgvc` and `imagenet` where the official lists are; or `variant`
    template: str = GENERIC[0]


PLACES = {
    "caltech101": _Place("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "dtd": _Place("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture."),
    "eurosat": _Place(
        "eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}."
    ),
    "fgvc_aircraft": _Place(
        "fgvc_aircraft", "images", "fgvc", "a photo of a {}, a type of aircraft."
    ),
    "food101": _Place(
        "food-101", "images", "split_zhou_Food101.json", "a photo of {}, a type of food."
    ),
    "imagenet": _Place("imagenet", "images", "imagenet"),
    "oxford_flowers": _Place(
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        "a photo of a {}, a type of flower.",
    ),
    "oxford_pets": _Place(
        "oxford_pets", "images", "split_zhou_OxfordPets.json", "a photo of a {}, a type of pet."
    ),
    "stanford_cars": _Place("stanford_cars", "", "split_zhou_StanfordCars.json"),
    "sun397": _Place("sun397", "SUN397", "split_zhou_SUN397.json"),
    "ucf101": _Place(
        "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "a photo of a person doing {}."
    ),
}
VARIANTS = {  # of ImageNet, with test images alone
    "imagenetv2": _Place("imagenetv2", "imagenetv2-matched-frequency-format-val", "variant"),
    "imagenet_sketch": _Place("imagenet-sketch", "images", "variant"),
    "imagenet_a": _Place("imagenet-adversarial", "imagenet-a", "variant"),
    "imagenet_r": _Place("imagenet-rendition", "imagenet-r", "variant"),
}
_KNOWN = PLACES | VARIANTS


def read(root: Path, dataset: str) -> Listing:
    """Read a data set by its name, or one's own split by the name of its JSON file below `root`."""
    if not root.is_dir():
        raise VPromptError(f"No folder at {root}. Give `root` the folder that holds the data sets.")
    if dataset.endswith(".json"):
        splits, key = _read_json(root / dataset)
        return _listing((root / dataset).stem, root, splits, GENERIC[0], key)
    name = _named(dataset)
    if name is None:
        raise VPromptError(
            f"No few-shot data set called {dataset!r}.{suggest(dataset, _KNOWN)} Or name the JSON "
            "file of your own splits, below `root`."
        )
    place = _KNOWN[name]
    folder = root / place.folder
    if not folder.is_dir():
        raise VPromptError(f"No folder at {folder}, where {dataset!r} is looked for.")
    official: dict[str, Callable[[Path], tuple[dict[str, list[Item]], str]]] = {
        "fgvc": _read_fgvc,
        "imagenet": _read_imagenet,
        "variant": functools.partial(_read_variant, images=folder / place.images),
    }
    reader = official.get(place.split)
    splits, key = reader(folder) if reader else _read_json(folder / place.split)
    return _listing(name, folder / place.images, splits, place.template, key)


def _named(dataset: str) -> str | None:
    """Return a data set by any spelling of its name, `OxfordPets` and `imagenet-a` among them."""
    plain = {re.sub(r"\W|_", "", name.lower()): name for name in _KNOWN}
    other = {"describabletextures": "dtd"}
    other |= {"imagenetadversarial": "imagenet_a", "imagenetrendition": "imagenet_r"}
    return {**plain, **other}.get(re.sub(r"\W|_", "", dataset.lower()))


def check_images(listing: Listing) -> None:
    """Raise VPromptError with a count and examples unless every listed image is there."""
    for split, items in listing.splits.items():
        missing = [path for path, _, _ in items if not (listing.images / path).is_file()]
        if missing:
            raise VPromptError(
                f"{len(missing)} of {len(items)} {split} images of {listing.name!r} are not in "
                f"{listing.images}, first {missing[0]!r}. Unpack the images there, with the names "
                "that the split gives them."
            )


def _listing(
    name: str, images: Path, splits: dict[str, list[Item]], template: str, key: str
) -> Listing:
    splits = {
        split: [(_spelled(images, path), label, same_text(text)) for path, label, text in items]
        for split, items in splits.items()
    }
    named: dict[int, str] = {}
    for path, label, text in (item for items in splits.values() for item in items):
        if named.setdefault(label, text) != text:
            raise VPromptError(
                f"The split of {name!r} calls class {label} both {named[label]!r} and {text!r} "
                f"(at {path!r}). Give every label one name."
            )
    if sorted(named) != list(range(len(named))):
        raise VPromptError(
            f"The labels of {name!r} should be 0, 1, 2, ... without a gap, but they are "
            f"{sorted(named)[:8]}."
        )
    tests = {path for path, _, _ in splits["test"]}
    for split in ("train", "val"):
        shared = sorted(tests & {path for path, _, _ in splits.get(split, [])})
        if shared:
            raise VPromptError(
                f"The split of {name!r} lists {len(shared)} images both in {split} and in test, "
                f"first {shared[0]!r}. Nothing measured on it would mean anything."
            )
    classes = tuple(named[label] for label in range(len(named)))
    return Listing(name, images, splits, classes, template, key)


def _spelled(images: Path, path: str) -> str:
    """Return a path as it is on this disk, where a list was written on another kind of computer."""
    if path.isascii() and "\\" not in path:
        return path
    found = lists.locate(images, path)
    return path if found is None else found.relative_to(images).as_posix()


def _read_json(path: Path) -> tuple[dict[str, list[Item]], str]:
    if not path.is_file():
        raise VPromptError(
            f"No file at {path}. Download it from the list of data sets of CoOp, or name your own."
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text)
        splits = {
            split: [(str(path), int(label), str(name)) for path, label, name in found[split]]
            for split in SPLITS
            if found.get(split)
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise VPromptError(
            f'{path} is not a split: expected {{"train": [[image, label, class], ...], "val": '
            f'..., "test": ...}} ({error}).'
        ) from None
    missing = {"train", "test"} - set(splits)
    if missing:
        raise VPromptError(f"{path} lists no {' and no '.join(sorted(missing))} images.")
    return splits, digest(text)


def _read_fgvc(folder: Path) -> tuple[dict[str, list[Item]], str]:
    """Read the official lists: `variants.txt`, and lines `1025794 707-320` for every split."""
    texts = [_text(folder / "variants.txt")]
    number = {name: label for label, name in enumerate(texts[0].split("\n")) if name.strip()}
    number = {name.strip(): label for name, label in number.items()}
    splits: dict[str, list[Item]] = {}
    for split in SPLITS:
        path = folder / f"images_variant_{split}.txt"
        texts.append(_text(path))
        splits[split] = []
        for line in texts[-1].splitlines():
            image, _, name = line.strip().partition(" ")
            if name not in number:
                raise VPromptError(f"{path}: {line!r} names no variant of variants.txt.")
            splits[split].append((f"{image}.jpg", number[name], name))
    return splits, digest(*texts)


def _read_imagenet(folder: Path) -> tuple[dict[str, list[Item]], str]:
    """Read folders `images/{train,val}/n01440764` and `classnames.txt`; val is the test split."""
    text = _text(folder / "classnames.txt")
    pairs = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    splits: dict[str, list[Item]] = {}
    for split, part in (("train", "train"), ("test", "val")):
        splits[split] = []
        for label, (number, _, name) in enumerate(sorted(pairs)):
            place = folder / "images" / part / number
            if not place.is_dir():
                raise VPromptError(f"No folder at {place}, which classnames.txt names.")
            found = sorted(p.name for p in place.iterdir() if is_image(p.name))
            splits[split] += [(f"{part}/{number}/{image}", label, name) for image in found]
    return splits, digest(text, *(path for items in splits.values() for path, _, _ in items))


def _read_variant(folder: Path, *, images: Path) -> tuple[dict[str, list[Item]], str]:
    """Read a variant of ImageNet: class folders by WordNet number, or by place among the thousand.

    Its classes are those that it has, 200 of the thousand in two of them, numbered from 0.
    """
    names = folder / "classnames.txt"
    text = _text(names if names.is_file() else folder.parent / "imagenet" / "classnames.txt")
    pairs = sorted(line.strip().partition(" ") for line in text.splitlines() if line.strip())
    known = {number: name for number, _, name in pairs}
    known |= {str(place): name for place, (_, _, name) in enumerate(pairs)}
    if not images.is_dir():
        raise VPromptError(f"No folder at {images}, where the images are looked for.")
    found = [p for p in images.iterdir() if p.is_dir() and not is_hidden(p.name)]
    found.sort(key=lambda path: (len(path.name), path.name))
    items = []
    for label, place in enumerate(found):
        if place.name not in known:
            raise VPromptError(f"{place} is a class that classnames.txt does not name.")
        files = sorted(p.name for p in place.iterdir() if is_image(p.name))
        items += [(f"{place.name}/{file}", label, known[place.name]) for file in files]
    if not items:
        raise VPromptError(f"{images} holds no class folders with images.")
    return {"test": items}, digest(text, *(path for path, _, _ in items))


def _text(path: Path) -> str:
    if not path.is_file():
        raise VPromptError(f"No file at {path}, one of the official lists of the data set.")
    return path.read_text(encoding="utf-8").strip()


def as_json(items: list[Item]) -> list[list[Any]]:
    """Return items as they stand in a split file."""
    return [list(item) for item in items]
