"""Facts: the rest of a run record as named tables, for whoever wants to check a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vprompt.report.wording import count, plural

MOST_INLINE = 12  # a longer list is folded away, so that it cannot flood the page

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """A name and its value; a long value is folded away behind `summary`."""

    name: str
    text: str
    summary: str = ""


@dataclass(frozen=True)
class Group:
    """A titled table of facts."""

    title: str
    facts: list[Fact] = field(default_factory=list)
    note: str = ""
    dense: bool = False  # many short rows, set in columns


# What the report shows elsewhere; anything else a record may hold goes under "Everything else".
_SHOWN = {
    "align",
    "backbone",
    "command",
    "grid",
    "machine",
    "method",
    "pool",
    "prompt_init",
    "scale",
    "screening",
    "seconds",
    "search",
    "settings",
    "starts",
    "task",
    "test",
    "train",
    "train_on",
    "transfer",
    "tuning",
}
_START = ("method", "settings", "prompt_init", "pool", "align", "scale")
_VALID = "Frozen throughout. A prompt is valid only for this backbone and this preprocessing."


def groups(run: Run) -> list[Group]:
    """Return all tables that have something to show."""
    task, machine = run["task"], dict(run["machine"])
    versions = machine.pop("versions", {})
    settings = {key: run[key] for key in ("train", "train_on", "grid") if key in run}
    start = {key: run[key] for key in _START if key in run}
    about = {"name": task["name"], "classes": task["num_classes"], **task["facts"]}
    found = [
        Group("Task", flatten(about)),
        _class_counts(task),
        Group("Splits", _splits(task["splits"]), "Digests cover the decoded pixels and labels."),
        Group("Backbone and preprocessing", flatten(run["backbone"]), _VALID),
        Group("Method and start", flatten({**start, **_start_digest(run)})),
        _screening(run.get("screening")),
        Group("Training settings", flatten(settings)),
        Group("Search", flatten(_search(run))),
        Group("Selection and result", flatten(_selection(run["tuning"]))),
        Group("Software", flatten(versions)),
        Group("Machine", flatten(machine)),
        Group("Everything else", flatten({k: v for k, v in run.items() if k not in _SHOWN})),
    ]
    return [group for group in found if group.facts]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[Fact]:
    """Return one fact per leaf of nested mappings, named by its path, in alphabetical order."""
    facts = []
    for key, value in sorted(values.items(), key=lambda item: str(item[0])):
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping) and value:
            facts += flatten(value, f"{name} \N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} ")
        else:
            facts.append(_fact(name, value))
    return facts


def _fact(name: str, value: Any) -> Fact:
    if isinstance(value, Sequence) and not isinstance(value, str):
        text = ", ".join(_text(item) for item in value) or "none"
        summary = plural(len(value), "value") if len(value) > MOST_INLINE else ""
        return Fact(name, text, summary)
    return Fact(name, _text(value))


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _class_counts(task: Run) -> Group:
    counts = task["train_images_per_class"]
    if task.get("target") == "number":
        return Group(
            "Numbers to learn", [Fact("of", str(task["classes"][0]))], task["census"]["about"]
        )
    pairs = zip(task["classes"], counts, strict=True)
    note = (
        f"{count(len(counts))} classes, from {count(min(counts))} to {count(max(counts))} images."
    )
    return Group(
        "Training images per class", [Fact(str(n), count(c)) for n, c in pairs], note, dense=True
    )


def _splits(splits: Run) -> list[Fact]:
    facts = []
    for name in sorted(splits, key=("train", "val", "test").index):
        text = plural(splits[name]["images"], "image")
        if "digest" in splits[name]:
            text += f", {splits[name]['digest']}"
        facts.append(Fact(name, text))
    return facts


def _screening(found: Run | None) -> Group:
    """Return how a large pool was screened: a fact for each stage, and all it left out folded."""
    if found is None:
        return Group("Screening of the pool")
    facts = []
    for stage in found["stages"]:
        kept = f"{plural(stage['kept'], 'source')} kept by {stage['rule']}"
        facts.append(Fact(stage["name"], kept))
        if stage["left_out"]:
            text = "; ".join(f"{name}: {why}" for name, why in sorted(stage["left_out"].items()))
            several = plural(len(stage["left_out"]), "source")
            facts.append(Fact(f"{stage['name']}, left out", text, several))
    rest = {key: found[key] for key in ("images", "settings", "solution") if key in found}
    note = "A pool of this size is not passed whole; whoever is left out has no weight."
    return Group("Screening of the pool", facts + flatten(rest), note)


def _start_digest(run: Run) -> dict[str, Any]:
    return {"start_digest": run["transfer"]["start_digest"]} if "transfer" in run else {}


def _selection(tuning: Run) -> dict[str, Any]:
    """Leave out what has a place of its own: the curve, the sizes and the moves of tokens."""
    shown = ("history", "parameters", "memory")
    rules = (tuning.get("memory") or {}).get("placement", {}).get("rules", {})
    return {**{k: v for k, v in tuning.items() if k not in shown}, **_named("placement", rules)}


def _search(run: Run) -> dict[str, Any]:
    """Return how the lengths were searched; what was found has a picture of its own."""
    search = dict(run.get("search", {}))
    about = {key: search.pop(key) for key in ("task", "tuning", "found") if key in search}
    return {**search, **({"splits": about["task"]["splits"]} if "task" in about else {})}


def _named(name: str, values: Run) -> dict[str, Any]:
    return {name: dict(values)} if values else {}
