"""The tasks, backbones and pools of `pools.few_shot`.

An *unrelated* pool holds prompts of the other image sets, a *related* one those of other classes or
domains of the same set: other traffic signs, alphabets, picture styles. No image and, but for the
domains of PACS, no class is both in a source and in a target.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vprompt.data.task import Split, Task
from vprompt.models.backbone import Backbone
from vprompt.opening import open_backbone, open_task

WEIGHTS = "vit_tiny_patch16_224/model.safetensors"
BACKBONES = {
    "vit_tiny": ("timm_vit(model=vit_tiny_patch16_224, checkpoint='{models}/" + WEIGHTS + "')", 96),
    "demo": ("demo", 70),
}
SETS = (
    "bbbc039_count",
    "caltech101",
    "chars74k_digits",
    "cifar100",
    "coil20",
    "dtd10",
    "elpv4",
    "gtsrb",
    "omniglot100",
    "oxford_flowers17",
    "oxford_pets3",
    "pacs",
    "rsscn7",
)
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
GROUPS = 4


@dataclass(frozen=True)
class Family:
    """Tasks that are related: every one is a target, and the others are its sources."""

    name: str
    members: tuple[str, ...]
    related: bool


UNRELATED = Family("unrelated", SETS, related=False)
RELATED = (
    Family("gtsrb groups", tuple(f"gtsrb-{k}" for k in range(GROUPS)), related=True),
    Family("omniglot groups", tuple(f"omniglot100-{k}" for k in range(GROUPS)), related=True),
    Family("cifar groups", tuple(f"cifar100-{k}" for k in range(GROUPS)), related=True),
    Family("pacs domains", tuple(f"pacs-{domain}" for domain in DOMAINS), related=True),
    Family("dsprites", ("dsprites-location", "dsprites-orientation"), related=True),
)
FAMILIES = (UNRELATED, *RELATED)


def backbone(name: str, models: Path) -> Backbone:
    """Open a backbone of the benchmark by its short name."""
    model, size = BACKBONES[name]
    return open_backbone(model.format(models=models), image_size=size, device="cpu")


def task(name: str, data: Path) -> Task:
    """Open a task by its short name; train and val are joined, so nothing is chosen on val."""
    place, _, part = name.partition("-")
    if place == "dsprites":
        found = open_task(f"dsprites(target={part}, test=400)")
    elif place == "pacs" and part:
        found = open_task(f"{data / 'pacs'}:{part}")
    else:
        found = open_task(str(data / place))
    if part.isdigit():
        found = group(found, int(part), _grouping(place))
    joined = found.train if found.val is None else found.train + found.val
    return replace(found, name=name, train=joined, val=None)


def _grouping(place: str) -> Callable[[int, Sequence[str]], int]:
    """Return the group of a class: by its number, but whole alphabets stay together."""
    if place != "omniglot100":
        return lambda label, classes: label % GROUPS

    def by_alphabet(label: int, classes: Sequence[str]) -> int:
        alphabets = sorted({name.partition("-")[0] for name in classes})
        return alphabets.index(classes[label].partition("-")[0]) % GROUPS

    return by_alphabet


def group(whole: Task, number: int, of: Callable[[int, Sequence[str]], int]) -> Task:
    """Return the classes of one group, renumbered, with their images."""
    kept = [label for label in range(len(whole.classes)) if of(label, whole.classes) == number]
    number_of = {label: row for row, label in enumerate(kept)}

    def cut(split: Split) -> Split:
        rows = [row for row, label in enumerate(split.labels) if label in number_of]
        part = split.subset(rows, f"{split.name}, group {number}")
        return replace(part, labels=tuple(number_of[label] for label in part.labels))

    assert whole.test is not None
    return replace(
        whole,
        name=f"{whole.name}-{number}",
        classes=tuple(whole.classes[label] for label in kept),
        train=cut(whole.train),
        val=whole.val and cut(whole.val),
        test=whole.test.cut(cut),
        facts={**whole.facts, "group": f"class number modulo {GROUPS} is {number}"},
    )


# The targets of the benchmark: eight with an unrelated pool, and six with a related one.
TARGETS = (
    "oxford_flowers17",
    "dtd10",
    "rsscn7",
    "pacs",
    "oxford_pets3",
    "elpv4",
    "coil20",
    "chars74k_digits",
    "gtsrb-3",
    "gtsrb-0",
    "omniglot100-0",
    "cifar100-0",
    "pacs-sketch",
    "dsprites-location",
)


def family_of(target: str) -> Family:
    """Return the family that a target belongs to."""
    return next(family for family in FAMILIES if target in family.members)
