"""Layouts of image folders: which folders are splits, which are classes, and what is neither."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vprompt.core.errors import VPromptError
from vprompt.data.census import LeftOut, counted
from vprompt.data.finding import SPLITS, Folder, no_image, same_text
from vprompt.data.lists import is_list

_DECORATION = (
    *("set", "sets", "data", "dataset", "images", "image", "imgs", "img", "split", "folder"),
)
_ASIDE = {  # words of folders whose images nobody has labelled
    *("unlabeled", "unlabelled", "pred", "predict", "prediction", "predictions", "submission"),
    *("unsup", "unsupervised", "extra"),
}
_ORDER: tuple[str, ...] = ("train", "val", "test")
UNLABELLED = "without a label"
BESIDE = "beside the folders that are read"


@dataclass(frozen=True, eq=False)
class Layout:
    """Folders by class, for every split, or for `all` where nothing is split yet.

    `how` says what gives the splits, `left_out` what does not count, `notes` what should be said.
    """

    splits: dict[str, dict[str, list[Folder]]]
    how: str = ""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Remarks:
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def split_word(name: str) -> tuple[str, str] | None:
    """Return the split that a folder's name means, and what else the name says, or None.

    `Training`, `train_images`, `TestSet`, `val2017` and `seg_train` are read; what is left of the
    last is `seg`, which has to be the same for all splits.
    """
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    words = [part for word in words for part in _parts(word)]
    found = [word for word in words if word in SPLITS]
    if len(found) != 1:
        return None
    rest = [w for w in words if w not in SPLITS and w not in _DECORATION and not w.isdecimal()]
    return SPLITS[found[0]], " ".join(rest)


def _parts(word: str) -> list[str]:
    """Take `trainset` apart."""
    for end in _DECORATION:
        if word.endswith(end) and word.removesuffix(end) in SPLITS:
            return [word.removesuffix(end), end]
    return [word]


def read_layout(root: Folder, *, measured: bool = False) -> Layout:
    """Return what the folders in `root` are; `measured` says that nothing will be learned from it.

    A folder that only wraps another is entered. Raises VPromptError where there is no class.
    """
    remarks, folder = _Remarks(), root
    while True:
        named = _named_splits(folder)
        alone = measured and "test" in named and len(named) == len(folder.holding) > 1
        if "train" in named or alone:
            if folder is not root:
                remarks.notes.append(f"the folders of the splits were found in {folder.path}")
            return _splits(folder, named, remarks, measured)
        inside = _splits_inside_classes(folder)
        if inside is not None:
            return inside
        if named and not measured and len(named) == len(folder.holding):
            raise VPromptError(_nothing_to_learn(folder, named))
        inner = _wrapped(folder)
        if inner is None:
            break
        remarks.left_out += counted(BESIDE, [path.name for path in folder.images])
        folder = inner
    if folder is not root:
        remarks.notes.append(f"class folders were found in {folder.path}")
    return _plain(folder, remarks)


def _named_splits(folder: Folder) -> dict[str, Folder]:
    """Return the folders that are splits, none where their names mean classes."""
    found: dict[str, list[Folder]] = {}
    rests = set()
    for each in folder.folders:
        word = split_word(each.name)
        if word is not None:
            found.setdefault(word[0], []).append(each)
            rests.add(word[1])
    # `train station` and `test tube` are classes: what the names say besides has to agree.
    lone = list(found) == ["train"] and not _is_lone_split(folder, found["train"])
    several = any(len(each) > 1 for each in found.values())
    if len(rests) > 1 or lone or (several and "train" not in found):
        return {}
    for split, folders in found.items():
        if len(folders) > 1:
            listing = ", ".join(each.path.name for each in folders)
            kind = "validation" if split == "val" else split
            raise VPromptError(
                f"{folder.path} has several {kind} folders: {listing}. Keep one of them."
            )
    return {split: each[0] for split, each in found.items()}


def _is_lone_split(folder: Folder, train: list[Folder]) -> bool:
    """Say whether a train without val and test is a split: beside it are images without labels."""
    others = [each for each in folder.holding if each not in train]
    aside = all(set(re.findall("[a-z]+", each.name.lower())) & _ASIDE for each in others)
    return bool(others) and aside and not train[0].images


def _splits(folder: Folder, named: dict[str, Folder], remarks: _Remarks, measured: bool) -> Layout:
    """Read splits that folders give; what has no labels is left out, and that is said."""
    labelled: dict[str, dict[str, list[Folder]]] = {}
    for word in _ORDER:
        if word not in named:
            continue
        known = labelled.get("train", {})
        own = _unwrapped(named[word], set(known))
        reason = "" if word == "train" else _unlabelled(own, known)
        if reason and measured and word == "test":
            raise VPromptError(f"{named[word].path} cannot be measured on: {reason}.")
        if reason:
            images = [str(path.relative_to(folder.path)) for path in named[word].all_images()]
            remarks.left_out += counted(UNLABELLED, images)
            remarks.notes.append(f"{named[word].path.name}/ is not used: {reason}")
            continue
        labelled[word] = _classes(own, remarks, near=folder)
    others = [each for each in folder.holding if each not in named.values()]
    beside = [str(p.relative_to(folder.path)) for each in others for p in each.all_images()]
    remarks.left_out += counted(BESIDE, [*(path.name for path in folder.images), *beside])
    if list(labelled) == ["train"]:  # so it is cut
        remarks.notes.append(f"all images are those of {named['train'].path.name}/")
        return Layout({"all": labelled["train"]}, "", *_done(remarks))
    how = f"given by the folders {', '.join(named[word].path.name for word in labelled)}"
    return Layout(labelled, how, *_done(remarks))


def _unlabelled(folder: Folder, classes: dict[str, list[Folder]]) -> str:
    """Say why the images of a folder have no labels, or return nothing."""
    if not folder.holding:
        count = len(folder.images)
        no_labels = f"its {count} images lie in no class folder, so they have no labels"
        return no_labels if count else "it holds no image"
    only = folder.holding[0].name
    if len(folder.holding) == 1 and classes and only not in classes:
        return f"its images lie in {only!r} alone, which is no class, so they have no labels"
    return ""


def _unwrapped(folder: Folder, classes: set[str]) -> Folder:
    """Enter folders that only wrap another, unless they are a class."""
    while True:
        inner = _wrapped(folder)
        if inner is None or inner.name in classes:
            return folder
        folder = inner


def _splits_inside_classes(folder: Folder) -> Layout | None:
    """Read `class/train/...`, `class/test/...`, where every class is split by itself."""
    splits: dict[str, dict[str, list[Folder]]] = {}
    for each in folder.holding:
        words = [split_word(inner.name) for inner in each.holding]
        if each.images or not all(words):
            return None
        for inner, word in zip(each.holding, words, strict=True):
            assert word is not None
            splits.setdefault(word[0], {}).setdefault(each.name, []).append(inner)
    if len(folder.holding) < 2 or "train" not in splits or len(splits) == 1:
        return None
    remarks = _Remarks(counted(BESIDE, [path.name for path in folder.images]))
    _classes(folder, remarks)  # an empty class is an error here, too
    ordered = {split: splits[split] for split in _ORDER if split in splits}
    how = f"given by the folders {', '.join(ordered)} in every class"
    return Layout(ordered, how, *_done(remarks))


def _wrapped(folder: Folder) -> Folder | None:
    """Return the one folder in it that holds folders of images, if no other holds any."""
    if len(folder.holding) != 1:
        return None
    [inner] = folder.holding
    return None if inner.images or not inner.holding else inner


def _plain(folder: Folder, remarks: _Remarks) -> Layout:
    classes = _classes(folder, remarks)
    alike = _nested_alike(folder)
    if alike:
        remarks.notes.append(alike)
    return Layout({"all": classes}, "", *_done(remarks))


def _nested_alike(folder: Folder) -> str:
    """Say so where the folders taken for classes hold folders of the same names, and no images."""
    inner = [tuple(each.name for each in one.holding) for one in folder.holding]
    if len(set(inner)) != 1 or len(inner[0]) < 2 or any(one.images for one in folder.holding):
        return ""
    names = ", ".join(each.path.name for each in folder.holding[:4])
    return (
        f"{names} are taken for the classes, and each holds the folders {', '.join(inner[0][:4])}; "
        f"if those are the classes, name one of them: {folder.holding[0].path}"
    )


def _classes(
    folder: Folder, remarks: _Remarks, near: Folder | None = None
) -> dict[str, list[Folder]]:
    """Return the class folders by name; raises VPromptError where one is empty or there is none.

    Where there is none, the error names lists of images in the folder, and in the one `near` it.
    """
    if not folder.folders:
        raise VPromptError(_no_classes(folder, near))
    classes: dict[str, list[Folder]] = {}
    for each in sorted(folder.folders, key=lambda each: each.name):
        if not each.images and not each.holding:
            raise VPromptError(no_image(each))
        classes.setdefault(each.name, []).append(each)
    remarks.left_out += counted("beside the class folders", [path.name for path in folder.images])
    return classes


def _no_classes(folder: Folder, near: Folder | None) -> str:
    places = [folder.path] if near is None or near is folder else [folder.path, near.path]
    found = [path for place in places for path in sorted(place.iterdir())]
    listed = [str(path) for path in found if path.is_file() and is_list(path)]
    told = f" A list of images can be named itself: {', '.join(listed[:4])}." if listed else ""
    there = f", but {len(folder.images)} images" if folder.images else ""
    return (
        f"{folder.path} has no class folders{there}. Put the images of each class into a folder of "
        f"its own: {folder.path.name}/<class>/<image>.{told}"
    )


def _nothing_to_learn(folder: Folder, named: dict[str, Folder]) -> str:
    names = " and ".join(each.path.name for each in named.values())
    first = next(iter(named.values())).path
    return (
        f"{folder.path} holds {names} and no train, so there is nothing to learn from. To measure "
        f"an artefact: `vprompt evaluate {folder.path} --artifact FOLDER`; to learn from those "
        f"images all the same, name {first}."
    )


def _done(remarks: _Remarks) -> tuple[tuple[LeftOut, ...], tuple[str, ...]]:
    return tuple(remarks.left_out), tuple(remarks.notes)


def class_order(layout: Layout) -> tuple[str, ...]:
    """Return the names of all classes, sorted."""
    return tuple(sorted({same_text(name) for each in layout.splits.values() for name in each}))


def folders_of(names: Sequence[str], split: dict[str, list[Folder]]) -> list[tuple[int, Folder]]:
    """Return the folders of a split with the places of their classes, in the order of classes."""
    return [(index, each) for index, name in enumerate(names) for each in split.get(name, [])]
