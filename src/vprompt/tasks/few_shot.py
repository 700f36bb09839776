"""Few-shot: the protocol of CoOp and MaPLe on its eleven data sets, or on one's own split file.

Reference: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv
2109.01134; base and new classes: Zhou et al., "Conditional Prompt Learning for Vision-Language
Models", CVPR 2022, arXiv 2203.05557.
"""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Literal

from vprompt.core import files
from vprompt.core.errors import VPromptError
from vprompt.data.census import Reading
from vprompt.data.task import SealedSplit, Split, Task
from vprompt.tasks import _coop
from vprompt.tasks._coop import Item, Listing

_VAL_SHOTS = 4  # of each class, at most
Draw = dict[str, list[Item]]


def load(
    *,
    root: str,
    dataset: str,
    shots: int = 16,
    seed: int = 1,
    subset: Literal["all", "base", "new"] = "all",
    draw: str | None = None,
) -> Task:
    """Draw `shots` training images of every class, and at most 4 of every class to choose by.

    `root` holds the data sets in CoOp's folders, `dataset` is one of them or a JSON file of the
    form of `split_zhou_Caltech101.json` below `root`, whose images lie below `root`. A class with
    fewer images is taken whole. The whole test split is kept. `base` is the first half of the
    classes (one more if they are odd in number), `new` the rest, numbered from 0; both come from
    one draw. `draw` names a JSON file: the draw is written there, or read where it exists.

    ImageNet has no validation images apart from its test images, so there they are drawn from
    training images that are not among the shots. Its variants (`imagenetv2`, `imagenet_sketch`,
    `imagenet_a`, `imagenet_r`) have test images alone: learn on `imagenet`, and evaluate on them.
    """
    if shots < 1:
        raise VPromptError(f"shots is at least 1, but got {shots}. The protocol has 1 to 16.")
    listing = _coop.read(Path(root).expanduser(), dataset)
    _coop.check_images(listing)
    drawn = _take(listing, shots, seed, draw) if "train" in listing.splits else {}
    kept = _subset(len(listing.classes), subset)
    splits = {
        name: _split(
            f"{name}_{shots}shot_seed{seed}" if name != "test" else "test", items, kept, listing
        )
        for name, items in {**drawn, "test": listing.splits["test"]}.items()
    }
    return Task(
        name=listing.name if subset == "all" else f"{listing.name}:{subset}",
        classes=tuple(listing.classes[label] for label in kept),
        train=splits.get("train", Split("train", (), ())),
        val=splits.get("val"),
        test=SealedSplit(splits["test"]),
        facts={
            "source": "few-shot protocol of CoOp",
            "dataset": listing.name,
            "split_digest": listing.digest,
            "subset": subset,
            "sizes": {name: len(split) for name, split in splits.items()},
            "few_shot": {
                "shots": shots,
                "seed": seed,
                **{name: [path for path, _, _ in items] for name, items in drawn.items()},
            },
        },
        templates=(listing.template,),
        only_test=not drawn,
        reading=_reading(drawn, shots, seed),
    )


def _reading(drawn: Draw, shots: int, seed: int) -> Reading:
    if not drawn:
        return Reading("the data set has test images alone")
    counts = Counter(label for _, label, _ in drawn["train"])
    few = sum(count < shots for count in counts.values())
    reading = Reading(f"{shots} images of each class drawn by seed {seed}, test as listed")
    if not few:
        return reading
    span = sorted({min(counts.values()), max(count for count in counts.values() if count < shots)})
    return reading.noting(
        f"{few} of {len(counts)} classes have fewer than {shots} images to learn from: "
        f"{' to '.join(map(str, span))}; all of these are used"
    )


def _take(listing: Listing, shots: int, seed: int, draw: str | None) -> Draw:
    """Return the draw of a file where there is one, or make it, and write it where one is named."""
    place = None if draw is None else Path(draw).expanduser()
    if place is not None and place.exists():
        return _read_draw(place, listing, shots, seed)
    drawn = _draw(listing.splits, shots, seed)
    if place is not None:
        written = {name: _coop.as_json(items) for name, items in drawn.items()}
        known = {"dataset": listing.name, "split_digest": listing.digest}
        files.write_json(place, {**written, **known, "shots": shots, "seed": seed})
    return drawn


def _draw(splits: dict[str, list[Item]], shots: int, seed: int) -> Draw:
    """Draw as CoOp's code does, so that the same seed gives the same images.

    One generator of Python's own, train before val, classes in the order they first appear.
    """
    generator = random.Random(seed)
    train = _draw_each(splits["train"], shots, generator)
    few = min(shots, _VAL_SHOTS)
    if "val" in splits:
        return {"train": train, "val": _draw_each(splits["val"], few, generator)}
    taken = {path for path, _, _ in train}
    rest = [item for item in splits["train"] if item[0] not in taken]
    val = _draw_each(rest, few, generator)
    return {"train": train, "val": val} if val else {"train": train}


def _draw_each(items: list[Item], shots: int, generator: random.Random) -> list[Item]:
    by_class: dict[int, list[Item]] = {}
    for item in items:
        by_class.setdefault(item[1], []).append(item)
    drawn: list[Item] = []
    for found in by_class.values():
        drawn += generator.sample(found, shots) if len(found) >= shots else found
    return drawn


def _read_draw(place: Path, listing: Listing, shots: int, seed: int) -> Draw:
    """Read a draw and hold it against the split: nothing but its train and val may be in it."""
    found = files.read_json(place)
    expected = {"split_digest": listing.digest, "shots": shots, "seed": seed}
    for key, value in expected.items():
        if not isinstance(found, dict) or found.get(key) != value:
            was = found.get(key) if isinstance(found, dict) else None
            raise VPromptError(
                f"{place} is another draw: its {key} is {was!r}, not {value!r}. Name another file, "
                "or remove it to draw anew."
            )
    train, val = listing.splits["train"], listing.splits.get("val", listing.splits["train"])
    drawn: Draw = {}
    for name, allowed in (("train", set(train)), ("val", set(val))):
        items = [tuple(item) for item in found.get(name, [])]
        strange = [item for item in items if item not in allowed]
        if strange:
            raise VPromptError(
                f"{place} draws {strange[0][0]!r} for {name}, which is not in that part of the "
                f"split of {listing.name!r}; refused."
            )
        if items:
            drawn[name] = items
    both = {path for path, _, _ in drawn["train"]} & {path for path, _, _ in drawn.get("val", [])}
    if both:
        raise VPromptError(f"{place} draws {min(both)!r} both for train and for val; refused.")
    return drawn


def _subset(classes: int, subset: str) -> range:
    """Return the labels of all, base or new classes."""
    middle = math.ceil(classes / 2)
    return {"all": range(classes), "base": range(middle), "new": range(middle, classes)}[subset]


def _split(name: str, items: list[Item], kept: range, listing: Listing) -> Split:
    chosen = [(path, label) for path, label, _ in items if label in kept]
    paths = tuple(listing.images / path for path, _ in chosen)
    return Split(name, paths, tuple(kept.index(label) for _, label in chosen))
