"""Verify: read a VTAB-1k folder whole, say what is in it, and what is wrong with it.

The test images are read here too, but only to compare files; no model sees them, and nothing is
chosen by them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.progress import SILENT, Progress
from vprompt.data.checks import CHECKS, UNION, Finding, Folder
from vprompt.data.inspect import ImageFacts, inspect_images
from vprompt.data.known import KNOWN_BAD
from vprompt.data.vtab import VtabTask, find, find_folder, in_order
from vprompt.data.vtab_lists import SPLITS, Listed, class_names, read_list


@dataclass(frozen=True)
class SplitFacts:
    """One split: counts, the formats and sizes in pixels of its images, and its fingerprints.

    `files` is a SHA-256 over the files and labels, `pixels` over the decoded images and labels;
    neither depends on names or on order. JPEG may decode to other pixels with another library.
    """

    images: int
    classes: int
    fewest: int
    most: int
    formats: dict[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    files: str
    pixels: str


@dataclass(frozen=True)
class Verification:
    """What verifying one task found."""

    name: str
    folder: str
    vtab: str | None
    classes: int
    splits: dict[str, SplitFacts]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Say that there is no error; warnings may remain."""
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "sound": self.sound}


def verify(paths: Iterable[Path | str], *, progress: Progress = SILENT) -> list[Verification]:
    """Verify every task that the paths name: a folder, `folder:prefix`, or a root of folders.

    A folder without a prefix stands for all tasks in it. Each image is read once.
    """
    found = []
    for folder, prefixes in _named(paths).items():
        found += _verify_folder(folder, prefixes, progress)
    return found


def tasks_in(root: Path) -> list[dict[str, Any]]:
    """Return one row per task under a root, VTAB's in the published order; reads lists only."""
    rows = []
    for folder in _folders(root):
        for prefix in _prefixes(folder):
            lists, problems = _read_lists(folder, prefix)
            task = None if prefix else find(folder.name)
            classes, found = _classes(folder, prefix, lists, task) if lists else ((), [])
            problems += found
            rows.append(
                {
                    "name": _name(folder, prefix),
                    "vtab": task.title if task else None,
                    "group": task.group if task else None,
                    "classes": len(classes),
                    **{split: len(lists[split][0]) if split in lists else 0 for split in SPLITS},
                    "problem": problems[0].text if problems else "",
                }
            )
    return rows


def _named(paths: Iterable[Path | str]) -> dict[Path, list[str]]:
    """Return the prefixes to verify by folder, in the order given, each once."""
    found: dict[Path, list[str]] = {}
    for given in paths:
        folder = find_folder(Path(given).expanduser())
        if folder is not None:
            pairs = [(each, prefix) for each in _folders(folder) for prefix in _prefixes(each)]
        else:
            place, _, prefix = str(given).rpartition(":")
            folder = find_folder(Path(place).expanduser()) if place else None
            if folder is None:
                raise VPromptError(f"No folder at {given}.")
            pairs = [(folder, prefix)]
            if prefix not in _prefixes(folder):
                there = ", ".join(f"{folder}:{p}" for p in _prefixes(folder) if p) or "none"
                raise VPromptError(
                    f"{folder} has no {prefix}_train800.txt. Tasks with a prefix there: {there}."
                )
        for each, prefix in pairs:
            wanted = found.setdefault(each, [])
            if prefix not in wanted:
                wanted.append(prefix)
    return found


def _folders(root: Path) -> list[Path]:
    if _prefixes(root):
        return [root]
    inside = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    tasks = [name for name, path in inside.items() if _prefixes(path)]
    if not tasks:
        raise VPromptError(
            f"{root} holds no task in the VTAB-1k format, nor does a folder in it: each has a "
            "train800.txt with lines of `relative/path label`."
        )
    return [inside[name] for name in in_order(tasks)]


def _prefixes(folder: Path) -> list[str]:
    """Return the prefixes of the tasks in a folder, the one without first.

    Any list but `test.txt`, which is a name that other files have, too, makes a task: one that
    lacks its training images is broken, and must not go unnamed.
    """
    kinds = re.compile(r"(?:(.+)_)?(?:train800|val200|train800val200)\.txt")
    matches = (kinds.fullmatch(path.name) for path in folder.glob("*.txt"))
    return sorted({match[1] or "" for match in matches if match})


def _verify_folder(path: Path, prefixes: Sequence[str], progress: Progress) -> list[Verification]:
    read = {prefix: _read_lists(path, prefix) for prefix in prefixes}
    listed = [p for lists, _ in read.values() for paths, _ in lists.values() for p in paths]
    images = inspect_images(listed, progress=progress)
    return [_judge(path, prefix, *read[prefix], images) for prefix in prefixes]


def _judge(
    path: Path,
    prefix: str,
    lists: dict[str, Listed],
    problems: list[Finding],
    images: dict[Path, ImageFacts],
) -> Verification:
    task = None if prefix else find(path.name)
    splits: dict[str, SplitFacts] = {}
    findings: list[Finding] = list(problems)
    classes: tuple[str, ...] = ()
    if "train800" in lists:
        classes, found = _classes(path, prefix, lists, task)
        folder = Folder(lists, classes, images, task)
        splits = {split: _split_facts(folder, split) for split in lists}
        findings += found
        findings += [finding for check in CHECKS for finding in check(folder)]
        findings += _known_bad(splits)
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.level))
    vtab = task.id if task else None
    return Verification(_name(path, prefix), str(path), vtab, len(classes), splits, tuple(findings))


def _read_lists(folder: Path, prefix: str) -> tuple[dict[str, Listed], list[Finding]]:
    lists: dict[str, Listed] = {}
    problems = []
    if not (folder / f"{_start(prefix)}train800.txt").is_file():
        text = f"there is no {_start(prefix)}train800.txt, so nothing can be learned from this task"
        problems.append(Finding("error", "missing_split", text))
    for split in (*SPLITS, UNION):
        file = f"{_start(prefix)}{split}.txt"
        if (folder / file).is_file():
            try:
                lists[split] = read_list(folder, file)
            except (VPromptError, UnicodeDecodeError) as error:
                problems.append(Finding("error", "bad_list", str(error).rstrip(".")))
    return lists, problems


def _classes(
    folder: Path, prefix: str, lists: dict[str, Listed], task: VtabTask | None
) -> tuple[tuple[str, ...], list[Finding]]:
    try:
        return class_names(folder, _start(prefix), lists, task), []
    except VPromptError as error:
        count = 1 + max(max(labels) for _, labels in lists.values())
        problem = Finding("error", "bad_classes", str(error).rstrip("."))
        return tuple(map(str, range(count))), [problem]


def _split_facts(folder: Folder, split: str) -> SplitFacts:
    whole, labels = folder.whole(split), folder.lists[split][1]
    counts = Counter(labels)
    sizes = sorted({(f.width, f.height) for _, f, _ in whole}, key=lambda s: s[0] * s[1])
    return SplitFacts(
        images=len(labels),
        classes=len(counts),
        fewest=min(counts.values()),
        most=max(counts.values()),
        formats=dict(sorted(Counter(f.format for _, f, _ in whole).items())),
        smallest=sizes[0] if sizes else (0, 0),
        largest=sizes[-1] if sizes else (0, 0),
        files="sha256:" + digest(*sorted(f"{f.file} {label}" for _, f, label in whole)),
        pixels="sha256:" + digest(*sorted(f"{f.pixels} {label}" for _, f, label in whole)),
    )


def _known_bad(splits: dict[str, SplitFacts]) -> list[Finding]:
    return [
        Finding("error", "known_bad", f"{split}: {KNOWN_BAD[mark]}")
        for split, facts in splits.items()
        for mark in (facts.files, facts.pixels)
        if mark in KNOWN_BAD
    ]


def _start(prefix: str) -> str:
    return f"{prefix}_" if prefix else ""


def _name(folder: Path, prefix: str) -> str:
    return folder.name + (f":{prefix}" if prefix else "")
