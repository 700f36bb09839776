"""Publishing: an artefact's config and record without the places of its author's disk.

Folder names of one's own images, paths of pools and models, and names of image files say more than
a stranger needs. Names of public data sets and of repositories on a hub stay.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

OWN = ("folder of class folders", "table")  # sources of tasks that are named after a person's files
_NAMED = 3
_DIRECTORIES = re.compile(r"(?<![\w:.@/~-])(?:~|\.{1,2})?/(?=[^\s/])(?:[^\s'\",;)]*/)?")
_IN_SPEC = re.compile(r"((?:local-dir:|checkpoint=['\"]?|start=['\"]?))[^'\",)]*/")


def published(
    config: Mapping[str, Any], run: Mapping[str, Any] | None, *, title: str | None = None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return copies of both without local places; `title` names the task in place of a folder."""
    facts = ((run or {}).get("task") or {}).get("facts") or {}
    own = facts.get("source") in OWN
    name = title or (title_of(config["label_names"]) if own else None)
    clean = _clean(copy.deepcopy(dict(config)))
    _rename(clean.get("task"), name)
    _without_places(clean.get("recipe"), own)
    if run is None:
        return clean, None
    record = _clean(copy.deepcopy(dict(run)))
    _without_places(record, own)
    for task in (record.get("task"), (record.get("search") or {}).get("task")):
        _rename(task, name)
        if own and isinstance(task, dict):
            facts = task.get("facts") or {}
            task["facts"] = {k: v for k, v in facts.items() if k not in ("folder", "file")}
            census = task.get("census") or {}
            census["notes"] = []
            for each in census.get("left_out", ()):
                each["examples"] = []
    return clean, record


def title_of(classes: list[str]) -> str:
    """Return a name for a task from its classes: `cat, dog and 3 more`."""
    more = len(classes) - _NAMED
    return ", ".join(classes[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _rename(task: Any, name: str | None) -> None:
    if isinstance(task, dict) and name is not None and "name" in task:
        task["name"] = name


def _without_places(values: Any, own: bool) -> None:
    """Take pool, sources and target of a recipe or a record back to their names, where they lie."""
    if not isinstance(values, dict):
        return
    if isinstance(values.get("pool"), str):
        values["pool"] = ", ".join(_name(part) for part in values["pool"].split(", "))
    replay = values.get("replay")
    if isinstance(replay, dict):
        for entry in replay.get("models", ()):
            entry["model"] = _name(str(entry.get("model")))
        target = replay.get("target")
        if own and isinstance(target, dict):
            target["data"] = None


def _name(place: str) -> str:
    """Return the last part of a place on a disk; one on a hub stays."""
    return place if place.startswith("hf-hub:") else PurePath(place).name


def _clean(value: Any) -> Any:
    """Take directories off every text that begins with a path, and off those within a spec."""
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    if isinstance(value, str):
        return _IN_SPEC.sub(r"\1", _DIRECTORIES.sub("", value))
    return value
