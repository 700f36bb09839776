"""Compare: why two numbers differ, field by field, what explains most first."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.artifacts import final
from vprompt.bench.store import MANIFEST, Store
from vprompt.core.errors import VPromptError
from vprompt.core.files import read_json
from vprompt.results.records import Records

# What a field means for a result, most important first; the longest prefix that fits counts.
REASONS: tuple[tuple[str, str], ...] = (
    ("backbone.fingerprint", "another checkpoint"),
    ("backbone", "another backbone"),
    ("backbone.data_config", "another preprocessing"),
    ("task", "another task"),
    ("task.classes", "other classes"),
    ("task.splits", "other images or labels"),
    ("task.value_range", "another preprocessing"),
    ("task.facts", "the data come from elsewhere or are drawn otherwise"),
    ("task.facts.few_shot", "other images were drawn"),
    ("job.shots", "another number of images"),
    ("train_on", "trained on other splits"),
    ("job.train_on", "trained on other splits"),
    ("job.data_digest", "other images or labels"),
    ("task.train_images_per_class", "another number of images"),
    ("command", "another method"),
    ("method", "another method"),
    ("settings", "another setting of the method"),
    ("align", "prompts are added up otherwise"),
    ("scale", "prompts are added up otherwise"),
    ("safeguard", "prompts are added up otherwise"),
    ("include_self", "the target's own prompt counts or not"),
    ("pool", "another pool"),
    ("transfer.sources", "other source prompts"),
    ("job.exclude", "other source prompts"),
    ("job.pool_digest", "other source prompts"),
    ("job.sources", "other source prompts"),
    ("tuning.selection", "the epoch is chosen by another rule"),
    ("grid", "chosen from other settings"),
    ("job.select", "chosen from other settings"),
    ("train", "another training setting"),
    ("train.seed", "another seed"),
    ("prompt_init", "another start of the prompt"),
    ("tuning.parameters", "another number of trained parameters"),
    ("protocol", "another protocol"),
    ("job.protocol", "another protocol"),
    ("machine.precision", "another precision"),
    ("machine.code", "another version of this code"),
    ("machine.versions", "another version of a library"),
    ("machine.device", "another kind of device"),
    ("machine.threads", "sums in another order"),
    ("machine", "another machine"),
)
# What follows from the fields above, and what is told elsewhere in the record.
_OUTCOMES = (
    "test",
    "task.census",
    "tuning",
    "transfer",
    "seconds",
    "total_seconds",
    "starts",
    "started_from",
    "aligned",
    "grid_reached",
    "replay",
    "id",
    "job",
    "cell",
    "machine.created_at",
    "machine.cores",
)
_KEPT = {prefix for prefix, _ in REASONS}
_SHOWN = 40


@dataclass(frozen=True)
class Difference:
    """One field that differs, in how many of the compared pairs, and what it means."""

    field: str
    here: str
    there: str
    reason: str
    pairs: int = 1


def compare(here: Path | str, there: Path | str) -> tuple[list[str], list[Difference]]:
    """Compare two run records, or two folders run by run.

    Returns sentences on how the numbers differ, and the fields that differ, most important first.
    Runs of two folders are paired by method, task and seed.
    """
    pairs = _pairs(Path(here), Path(there))
    found: Counter[Difference] = Counter()
    for one, other in pairs:
        found.update(differences(one, other))
    merged = _merge(found)
    return _numbers(pairs), merged


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    """Return the fields in which two records differ, outcomes left out, most important first."""
    one, other = dict(_flatten(here)), dict(_flatten(there))
    found = [
        Difference(field, _show(one.get(field)), _show(other.get(field)), _reason(field)[1])
        for field in {**one, **other}
        if one.get(field) != other.get(field) and _counts(field)
    ]
    return sorted(found, key=lambda each: (_reason(each.field)[0], each.field))


def _pairs(here: Path, there: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    if here.is_dir() != there.is_dir():
        raise VPromptError("Give two run files, or two folders of `bench run`.")
    if not here.is_dir():
        return [(_record(here), _record(there))]
    one, other = _by_cell(here), _by_cell(there)
    shared = [cell for cell in one if cell in other]
    if not shared:
        raise VPromptError(
            f"{here} and {there} share no run of the same method, task and seed. Give two run "
            "files to compare them all the same."
        )
    return [(one[cell], other[cell]) for cell in shared]


def _record(path: Path) -> dict[str, Any]:
    # A run that is packed is named by the file that it was.
    is_json = path.suffix == ".json"
    record = Records(path.parent).read(path.stem) if is_json else read_json(path)
    if not (isinstance(record, dict) and "backbone" in record and "tuning" in record):
        raise VPromptError(f"{path} is no record of a run.")
    return record


def _by_cell(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    if not (folder / MANIFEST).is_file():
        raise VPromptError(f"{folder} holds no benchmark: there is no {MANIFEST}.")
    store = Store(folder)
    found = store.records(store.cells())
    return {(cell.method, cell.task, cell.seed): record for cell, record in found.items()}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path; the sources of a pool are named by themselves."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix == "transfer.sources":
        for source in value:
            yield f"{prefix}.{source['name']}", source["digest"]
    else:
        yield prefix, value


def _counts(field: str) -> bool:
    """Say whether a field explains a result, and is not one."""
    ancestors = _ancestors(field)
    kept = next((index for index, each in enumerate(ancestors) if each in _KEPT), len(ancestors))
    left = next(
        (index for index, each in enumerate(ancestors) if each in _OUTCOMES), len(ancestors)
    )
    return kept <= left


def _reason(field: str) -> tuple[int, str]:
    for each in _ancestors(field):
        for rank, (prefix, reason) in enumerate(REASONS):
            if prefix == each:
                return rank, reason
    return len(REASONS), "not known to matter"


def _ancestors(field: str) -> list[str]:
    """Return the field and the groups it lies in, the nearest first."""
    parts = field.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _show(value: Any) -> str:
    if isinstance(value, list) and len(str(value)) > _SHOWN:
        return f"{len(value)} values: {str(value)[: _SHOWN // 2]}..."
    text = "not there" if value is None else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _merge(found: Counter[Difference]) -> list[Difference]:
    """Join what differs alike in several pairs; a field of many values says how many."""
    merged = [
        Difference(each.field, each.here, each.there, each.reason, pairs)
        for each, pairs in found.items()
    ]
    many = Counter(each.field for each in merged)
    joined: dict[str, Difference] = {}
    for each in merged:
        if many[each.field] == 1:
            joined[each.field] = each
        elif each.field not in joined:
            total = sum(other.pairs for other in merged if other.field == each.field)
            here = f"{each.here}, and others"
            joined[each.field] = Difference(each.field, here, each.there, each.reason, total)
    return sorted(joined.values(), key=lambda each: (_reason(each.field)[0], each.field))


def _numbers(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    gaps = []
    for one, other in pairs:
        here, there = final.of(one), final.of(other)
        if here is not None and there is not None:
            gaps.append(100 * (there["acc1"] - here["acc1"]))
    if not gaps:
        return [f"{len(pairs)} pairs of runs, none of them measured on test"]
    same = sum(abs(gap) < 1e-9 for gap in gaps)
    widest = max(gaps, key=abs)
    return [
        f"{len(gaps)} pairs of runs: {same} with the same test accuracy, mean difference "
        f"{statistics.fmean(gaps):+.2f} points, largest {widest:+.2f}"
    ]
