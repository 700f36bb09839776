"""Anchors: hold results against published ones, where the two can be compared at all.

An anchor is a line of a CSV file: `method, task, accuracy, source`, and where it has them `detail`,
`backbone`, `tolerance`. A result is held against the anchors of its method, or of the names that
the recipe gives as the method's `anchor`.
"""

import csv
import fnmatch
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vprompt.bench import suite
from vprompt.bench.store import Store
from vprompt.bench.summary import Row, Spread, summarise
from vprompt.core.errors import VPromptError
from vprompt.data import vtab
from vprompt.data.preprocessing import shown

VIT_B16 = "vit_base_patch16_224.orig_in21k"
# Files whose numbers were all made with one backbone, which their lines do not say.
BACKBONES = {
    "hgprompt_table1": VIT_B16,
    "hgprompt_table2": VIT_B16,
    "vtab_published_13": VIT_B16,
    "vtab19_published": VIT_B16,
    "vpt_independent": VIT_B16,
}
TRAIN_IMAGES = 1000  # of every VTAB-1k task
# Points of accuracy. Launching the same code twice moved a task by 1.2 points on average and by up
# to 7.8, a mean over tasks by 0.65 (independent re-runs of VPT-Deep).
TASK_TOLERANCE, MEAN_TOLERANCE = 3.0, 1.5
_MEANS = ("natural", "specialized", "structured", "mean_*")
_PRINTED = "average*"  # means as printed, which are not always those of the numbers beside them
_NO_TARGETS = (
    "best test epoch",
    "user report",
    "own 1k split",
)  # chosen on test, hearsay, other data

Verdict = Literal["agrees", "deviates", "not comparable"]


@dataclass(frozen=True)
class Anchor:
    """One published number, in %, and how far a result may be from it."""

    method: str
    task: str
    accuracy: float
    file: str
    source: str
    detail: str
    backbone: str | None
    tolerance: float


@dataclass(frozen=True)
class Finding:
    """A result beside an anchor; `why` says what keeps them from being compared."""

    anchor: Anchor
    result: Spread
    verdict: Verdict
    why: str = ""

    @property
    def difference(self) -> float:
        """The result less the anchor, in points."""
        return self.result.mean - self.anchor.accuracy

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        spread = self.result
        std = None if math.isnan(spread.std) else spread.std
        result = {"mean": spread.mean, "std": std, "n": spread.n}
        return {**asdict(self), "result": result, "difference": self.difference}


def read(folder: Path | str) -> list[Anchor]:
    """Read all CSV files of a folder.

    Left out are numbers chosen on the test split, reports of single users, numbers on other copies
    of the data, and means as printed: they are computed again.
    """
    files = sorted(Path(folder).glob("*.csv"))
    if not files:
        raise VPromptError(f"{folder} holds no .csv file of anchors.")
    return [anchor for file in files for anchor in _read_file(file)]


def check(store: Store, anchors: Sequence[Anchor]) -> list[Finding]:
    """Return one finding for every anchor that has a result beside it."""
    summary = summarise(store)
    names = {m.name: m.anchors for m in store.recipe().methods}
    mean = f"mean_{len(summary.tasks)}"
    anchors = [*anchors, *_recomputed(anchors, [suite.canonical(t) for t in summary.tasks], mean)]
    records = _first_records(store)
    findings = []
    for row in summary.rows:
        values: dict[str, Spread | None] = {
            **{suite.canonical(task): spread for task, spread in row.cells.items()},
            **(_groups(row) if len(summary.tasks) == len(vtab.TASKS) else {}),
            mean: row.mean,
        }
        for anchor in anchors:
            if anchor.method not in names[row.method]:
                continue
            spread = values.get(anchor.task)
            if spread is not None:
                own = [r for (m, _), r in records.items() if m == row.method]
                one = records.get((row.method, anchor.task))
                findings.append(_find(anchor, spread, [one] if one is not None else own))
    return findings


def _find(anchor: Anchor, result: Spread, records: Sequence[Mapping[str, Any]]) -> Finding:
    for record in records:
        why = _not_comparable(anchor, record)
        if why is not None:
            return Finding(anchor, result, "not comparable", why)
    near = abs(result.mean - anchor.accuracy) <= anchor.tolerance
    return Finding(anchor, result, "agrees" if near else "deviates")


def _not_comparable(anchor: Anchor, record: Mapping[str, Any]) -> str | None:
    """Say what is not alike in how the two numbers were made; None where nothing known differs."""
    if anchor.backbone is None:
        return "the anchor does not say its backbone"
    name = record["backbone"]["name"]
    if name.split("/")[-1].split("@")[0] != anchor.backbone:
        return f"another backbone: {name}, not {anchor.backbone}"
    size = shown(*record["backbone"]["data_config"]["input_size"][1:])
    if size != "224":
        return f"another image size: {size} px, not 224"
    task = record["job"]["task"]
    known = vtab.find(task)
    if known is None:
        return f"{task} is no task of VTAB"
    splits = record["task"]["splits"]
    test = splits["test"]["images"]
    if test not in known.test_images:
        wanted = " or ".join(f"{count:,}" for count in known.test_images)
        return f"another test split of {task}: {test:,} images, not {wanted}"
    seen = splits["train"]["images"]
    if seen != TRAIN_IMAGES:
        return f"another protocol: trained on {seen} images, not {TRAIN_IMAGES:,}"
    return None


def _groups(row: Row) -> dict[str, Spread | None]:
    """Return the group means of a row over all of VTAB: over fewer tasks they are other numbers."""
    return {**row.groups, "mean_groups": row.mean_of_groups}


def _recomputed(anchors: Sequence[Anchor], tasks: Sequence[str], name: str) -> list[Anchor]:
    """Return the mean over the tasks for every file's method that has exactly one number for each.

    Where a file states a mean of that name, its own is enough.
    """
    groups: dict[tuple[str, str], dict[str, list[Anchor]]] = {}
    for anchor in anchors:
        own = groups.setdefault((anchor.file, anchor.method), {})
        own.setdefault(anchor.task, []).append(anchor)
    means = []
    for own in groups.values():
        if name in own or not all(len(own.get(task, ())) == 1 for task in tasks):
            continue
        [first], numbers = own[tasks[0]], [own[task][0].accuracy for task in tasks]
        mean, detail = statistics.fmean(numbers), "mean of the numbers, recomputed"
        means.append(
            replace(first, task=name, accuracy=mean, detail=detail, tolerance=MEAN_TOLERANCE)
        )
    return means


def _first_records(store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """Return one record for every method and task: seeds do not change what is compared here."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for cell, record in store.records(store.cells()).items():
        found.setdefault((cell.method, suite.canonical(cell.task)), record)
    return found


def _read_file(file: Path) -> list[Anchor]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = {"method", "task", "accuracy"} - set(reader.fieldnames or ())
        if missing:
            raise VPromptError(
                f"{file} has no column {', '.join(sorted(missing))}. Anchors need method, task and "
                "accuracy."
            )
        found = []
        for line in reader:
            detail = line.get("detail") or ""
            printed = fnmatch.fnmatch(line["task"], _PRINTED)
            if not printed and not any(words in detail for words in _NO_TARGETS):
                found.append(_anchor(file, reader.line_num, line, detail))
        return found


def _anchor(file: Path, number: int, line: Mapping[str, str], detail: str) -> Anchor:
    is_mean = any(fnmatch.fnmatch(line["task"], pattern) for pattern in _MEANS)
    try:
        given = line.get("tolerance")
        tolerance = float(given) if given else MEAN_TOLERANCE if is_mean else TASK_TOLERANCE
        accuracy = float(line["accuracy"])
    except ValueError as error:
        raise VPromptError(f"{file}, line {number}: {error}.") from None
    return Anchor(
        method=line["method"],
        task=suite.canonical(line["task"]),
        accuracy=accuracy,
        file=file.stem,
        source=line.get("source") or "",
        detail=detail,
        backbone=line.get("backbone") or BACKBONES.get(file.stem),
        tolerance=tolerance,
    )
