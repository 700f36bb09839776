"""Checks: what can be wrong with a VTAB-1k folder; each returns what it found.

An error makes results wrong, a warning makes them differ from published ones or weaker than they
look, a note is only worth knowing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from vprompt.data.inspect import LOSSY, ImageFacts
from vprompt.data.vtab import LOSSY as LOSSY_COPY
from vprompt.data.vtab import VtabTask
from vprompt.data.vtab_lists import SPLITS, Listed

UNION = "train800val200"
_CALTECH = {6_084: "as in task_adaptation", 6_085: "as in the shared folder release"}


@dataclass(frozen=True)
class Finding:
    """One thing that was found; `code` is for programs and stays the same."""

    level: Literal["error", "warning", "note"]
    code: str
    text: str


@dataclass(frozen=True, eq=False)
class Folder:
    """A task as it lies on disk: its lists, its class names, every image, and which VTAB task."""

    lists: Mapping[str, Listed]
    classes: tuple[str, ...]
    images: Mapping[Path, ImageFacts]
    task: VtabTask | None

    def whole(self, split: str) -> list[tuple[Path, ImageFacts, int]]:
        """Return path, facts and label of every image of a split that can be read."""
        rows = zip(*self.lists[split], strict=True)
        return [(p, self.images[p], y) for p, y in rows if not self.images[p].problem]


def check_files(folder: Folder) -> Iterator[Finding]:
    """Every file of a list is there and can be decoded."""
    for split, (paths, _) in folder.lists.items():
        bad = [path for path in dict.fromkeys(paths) if folder.images[path].problem]
        if bad:
            listed = some([f"{path.name} ({folder.images[path].problem})" for path in bad])
            text = (
                f"of {count(len(paths), 'image')} of {split}, {len(bad)} cannot be read: {listed}"
            )
            yield Finding("error", "unreadable", text)


def check_labels(folder: Folder) -> Iterator[Finding]:
    """Labels stay within the classes that the task has."""
    if folder.task is None:
        return
    for split, (_, labels) in folder.lists.items():
        if max(labels) >= folder.task.classes:
            text = (
                f"{split} holds the label {max(labels)}, but {folder.task.title} has "
                f"{folder.task.classes} classes, numbered from 0"
            )
            yield Finding("error", "label_range", text)


def check_paths(folder: Folder) -> Iterator[Finding]:
    """No file is listed in two splits, or twice in one."""
    named = {s: dict(zip(*folder.lists[s], strict=True)) for s in _splits(folder)}
    for first, second in combinations(named, 2):
        shared = sorted(named[first].keys() & named[second].keys())
        if shared:
            listed = some([path.name for path in shared])
            text = f"{count(len(shared), 'file')} listed in {first} and in {second}: {listed}"
            yield Finding("error", "same_path", text)
    for split in named:
        twice = [p.name for p, times in Counter(folder.lists[split][0]).items() if times > 1]
        if twice:
            text = f"{count(len(twice), 'file')} listed twice in {split}: {some(twice)}"
            yield Finding("error", "listed_twice", text)


def check_content(folder: Folder) -> Iterator[Finding]:
    """No image stands in two splits under different names, or twice with different labels."""
    for what, key in (("file", _file), ("pixels", _pixels)):
        yield from _same_content(folder, what, key)
    for split in _splits(folder):
        labels = defaultdict(set)
        for _, facts, label in folder.whole(split):
            labels[facts.pixels].add(label)
        torn = sum(len(found) > 1 for found in labels.values())
        if torn:
            text = f"{count(torn, 'image')} of {split} twice there, with different labels"
            yield Finding("warning", "conflicting_labels", text)
        twice = len(folder.whole(split)) - len(labels)
        if twice and not torn:
            text = f"{count(twice, 'image')} of {split} with the pixels of another one there"
            yield Finding("warning", "repeated", text)


def _same_content(folder: Folder, what: str, key: Callable[[ImageFacts], str]) -> Iterator[Finding]:
    found = {s: {key(f): p for p, f, _ in folder.whole(s)} for s in _splits(folder)}
    files = {s: {f.file for _, f, _ in folder.whole(s)} for s in _splits(folder)}
    for first, second in combinations(found, 2):
        shared = found[first].keys() & found[second].keys()
        if what == "pixels":  # say only what the bytes have not said
            same_file = files[first] & files[second]
            shared = {k for k in shared if folder.images[found[first][k]].file not in same_file}
        pairs = sorted((found[first][k], found[second][k]) for k in shared)
        pairs = [(a, b) for a, b in pairs if a != b]
        if pairs:
            listed = some([f"{a.name} = {b.name}" for a, b in pairs])
            how = "byte by byte" if what == "file" else "in every pixel"
            text = (
                f"{count(len(pairs), 'image')} the same {how} in {first} and in {second}: {listed}"
            )
            yield Finding("warning", f"same_{what}", text)


def check_classes(folder: Folder) -> Iterator[Finding]:
    """Every class that is judged was shown in training."""
    shown = set(folder.lists["train800"][1])
    for split in _splits(folder):
        lost = sorted(set(folder.lists[split][1]) - shown)
        if lost:
            names = some([folder.classes[label] for label in lost])
            text = f"{count(len(lost), 'class')} of {split} never shown by train800: {names}"
            yield Finding("warning", "untrained_classes", text)
    never = [n for label, n in enumerate(folder.classes) if label not in shown]
    if never:
        text = f"of {count(len(folder.classes), 'class')}, {len(never)} absent from train800: "
        yield Finding("note", "absent_from_train", text + some(never))
    if "val200" in folder.lists:
        judged = set(folder.lists["val200"][1])
        never = [n for label, n in enumerate(folder.classes) if label not in judged]
        if never:
            text = f"of {count(len(folder.classes), 'class')}, {len(never)} absent from val200: "
            yield Finding("note", "absent_from_val", text + some(never))


def check_sizes(folder: Folder) -> Iterator[Finding]:
    """The splits of a VTAB task are as large as the published ones."""
    missing = [split for split in SPLITS if split not in folder.lists]
    if missing:
        text = f"there is no {' and no '.join(f'{split}.txt' for split in missing)}"
        yield Finding("warning", "missing_split", text)
    task = folder.task
    if task is None:
        return
    wanted = {"train800": (800,), "val200": (200,), "test": task.test_images}
    for split in _splits(folder):
        size = len(folder.lists[split][0])
        if size not in wanted[split]:
            text = (
                f"{split} has {count(size, 'image')}, that of {task.title} has "
                f"{wanted[split][0]:,}: results do not compare with published ones"
            )
            yield Finding("warning", "split_size", text)
        elif split == "test" and task.id == "caltech101":
            text = f"test has {size:,} images, {_CALTECH[size]}; both sizes are in use"
            yield Finding("note", "caltech_size", text)
    shown = {label for split in _splits(folder) for label in folder.lists[split][1]}
    if len(shown) < task.classes:
        text = f"only {len(shown)} of the {task.classes} classes of {task.title} occur in any list"
        yield Finding("warning", "class_count", text)


def check_union(folder: Folder) -> Iterator[Finding]:
    """train800val200 holds the images and labels of train800 and val200, and nothing else."""
    if UNION not in folder.lists or "val200" not in folder.lists:
        return

    def content(*splits: str) -> Counter[tuple[str, int]]:
        return Counter((f.pixels, y) for split in splits for _, f, y in folder.whole(split))

    parts, whole = content("train800", "val200"), content(UNION)
    if parts != whole:
        text = (
            f"{UNION} is not train800 and val200 together: {(parts - whole).total()} images are "
            f"missing and {(whole - parts).total()} are in neither"
        )
        yield Finding("warning", "union", text)


def check_lossy(folder: Folder) -> Iterator[Finding]:
    """Images that were published without loss are not kept as JPEG."""
    if folder.task is None or not folder.task.lossless:
        return
    kinds = Counter(f.format for s in _splits(folder) for _, f, _ in folder.whole(s))
    lossy = sum(kinds[kind] for kind in LOSSY)
    if lossy:
        reason = LOSSY_COPY.format(title=folder.task.title)
        text = f"of {count(kinds.total(), 'image')}, {lossy:,} stored with loss: {reason}"
        yield Finding("warning", "lossy", text)


CHECKS: tuple[Callable[[Folder], Iterator[Finding]], ...] = (
    check_files,
    check_labels,
    check_paths,
    check_content,
    check_classes,
    check_sizes,
    check_union,
    check_lossy,
)


def count(number: int, noun: str) -> str:
    """Return `1 image`, `2 images`, `3 classes`."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def some(words: Iterable[str], limit: int = 4) -> str:
    """Return the first few words, and how many more there are."""
    listed: Sequence[str] = list(words)
    more = f", and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _splits(folder: Folder) -> list[str]:
    return [split for split in SPLITS if split in folder.lists]


def _file(facts: ImageFacts) -> str:
    return facts.file


def _pixels(facts: ImageFacts) -> str:
    return facts.pixels
