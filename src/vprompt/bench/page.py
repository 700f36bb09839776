"""Page: everything a benchmark shows, tables and figures, as one self-contained HTML file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from vprompt.bench import figures, formats
from vprompt.bench.store import Store
from vprompt.bench.summary import Row, Summary, summarise
from vprompt.core.errors import VPromptError
from vprompt.core.files import write_text
from vprompt.core.progress import SILENT, Progress
from vprompt.data.preprocessing import shown
from vprompt.report.html import fill
from vprompt.report.wording import count, duration, percent, plural, signed

# What a section draws: a kind of `figures.KINDS`, and its options.
_DRAWN: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("lambda", {}),
    ("ablation", {}),
    ("pareto", {"cost": "seconds"}),
    ("pareto", {"cost": "parameters"}),
    ("weights", {}),
    ("cosines", {}),
)
_NAMED = ("vprompt", "torch", "timm")


def write_report(
    folders: Sequence[Path],
    path: Path,
    *,
    baseline: str | None = None,
    data: Path | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> list[str]:
    """Write the report of one or several benchmarks; return a sentence for what it leaves out.

    `baseline` stands in for the recipe's own. With `data`, the folder of the image sets, it has
    maps of features too.
    """
    sections = []
    with progress.step("figures", len(folders) * (len(_DRAWN) + 1)) as step:
        for number, folder in enumerate(folders, 1):
            section = _section(Store(folder), number, baseline=baseline)
            for kind, options in [*_DRAWN, ("tsne", {})]:
                given: dict[str, Any] = dict(options)
                given |= {"baseline": baseline} if kind == "ablation" and baseline else {}
                if kind == "tsne":
                    given |= {"device": device, **({} if data is None else {"data": data})}
                _add_figure(section, Store(folder), kind, given)
                step.advance(1, kind)
            sections.append(section)
    names = ", ".join(section["name"] for section in sections)
    write_text(Path(path), fill("bench.html", {"title": names, "sections": sections}))
    return [f"{section['name']}: {why}" for section in sections for why in section["left_out"]]


def _section(store: Store, number: int, *, baseline: str | None) -> dict[str, Any]:
    recipe, summary = store.recipe(), summarise(store, baseline=baseline)
    cells = store.cells()
    return {
        "id": f"benchmark-{number}",
        "name": recipe.name,
        "facts": _facts(store, summary),
        "headline": headline(summary),
        "table": Markup(formats.html_table(summary)),
        "caption": formats.caption(summary),
        "baseline": summary.baseline,
        "runs": [
            {**run, "accuracy": f"{run['accuracy']:.1f}", "seconds": f"{run['seconds']:.0f}"}
            for run in summary.runs
        ],
        "finished": f"{count(len(cells) - summary.missing)} of {plural(len(cells), 'run')}",
        "recipe": yaml.safe_dump(
            recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=96
        ),
        "seeds": len(recipe.seeds),
        "table_rows": plural(len(summary.rows), "method"),
        "figures": [],
        "left_out": [],
    }


def _add_figure(
    section: dict[str, Any], store: Store, kind: str, options: Mapping[str, Any]
) -> None:
    try:
        drawing = figures.draw(kind, store, **options)
    except VPromptError as error:
        # A page that is passed on should not tell where its author's files are.
        why = str(error).replace(str(store.folder), f"the folder of {section['name']}")
        if "data" in options:
            why = why.replace(str(options["data"]), "the data folder")
        section["left_out"].append(f"{kind}: {why}")
        return
    place = f"{section['id']} {options.get('cost', '')}"
    section["figures"].append(
        {
            "kind": kind,
            "svg": Markup(drawing.svg(place)),
            "description": drawing.description,
            "wide": kind == "weights",
            "cost": options.get("cost", ""),
        }
    )


def headline(summary: Summary) -> dict[str, str]:
    """Return the result in one sentence, with what speaks against it.

    Means over different runs cannot be compared, so there is none before all are there.
    """
    if summary.missing:
        return {
            "number": "",
            "text": f"Not finished: {plural(summary.missing, 'run')} of the recipe "
            f"{'is' if summary.missing == 1 else 'are'} missing, so means of two methods may be "
            "over different runs. The gains below compare equal runs.",
        }
    ranked = sorted(
        (row for row in summary.rows if row.mean is not None),
        key=lambda row: -row.mean.mean if row.mean else 0.0,
    )
    best = ranked[0]
    assert best.mean is not None
    tasks, seeds = plural(len(summary.tasks), "task"), plural(best.mean.n, "seed")
    text = f"mean test accuracy of {best.method}, the highest, over {tasks} and {seeds}"
    return {"number": percent(best.mean.mean / 100), "text": text + _against(best, summary) + "."}


def _against(best: Row, summary: Summary) -> str:
    if best.method == summary.baseline:
        return "; it is what the others are compared with"
    found = best.over_tasks
    if found is None or math.isnan(found.low):
        return ""
    text = (
        f"; {signed(found.mean, 1)} points more than {summary.baseline} (95 % interval over tasks: "
    )
    text += f"{signed(found.low, 1)} to {signed(found.high, 1)})"
    if found.low <= 0 <= found.high:
        text += ", which may as well be none on other tasks"
    return text


def _facts(store: Store, summary: Summary) -> list[tuple[str, str]]:
    """Return what the runs of a section were made with, named."""
    seen: dict[str, set[str]] = {}
    for _, record in store.select():
        backbone, machine = record["backbone"], record["machine"]
        size = (backbone.get("data_config") or {}).get("input_size")
        versions = machine.get("versions") or {}
        facts = {
            "backbone": backbone["name"]
            + (f" at {shown(*size[1:])} px" if size else "")
            + ", frozen",
            "device": f"{machine['device']}, {machine['precision']}",
            "software": ", ".join(
                f"{name} {versions[name]}" for name in _NAMED if name in versions
            ),
            "date": (machine.get("created_at") or "")[:10],
        }
        for name, value in facts.items():
            seen.setdefault(name, set()).update({value} - {""})
    spent = sum(run["seconds"] for run in summary.runs)
    found = [(name, _span(name, values)) for name, values in seen.items() if values]
    return [*found, ("time of all runs", duration(spent))]


def _span(name: str, values: Iterable[str]) -> str:
    ordered = sorted(values)
    if name == "date" and len(ordered) > 1:
        return f"{ordered[0]} to {ordered[-1]}"
    return "; ".join(ordered)
