"""Tables of `searching.real_clip` and `searching.real_few_shot`: real images with real words."""

from statistics import mean
from typing import Any

from benchmarks import found_in
from benchmarks.paired import interval
from benchmarks.searching.real_clip import RECORDS
from vprompt.results.records import Records

# What a first assembly reached without any image: the probabilities of the ViT's 1,000 classes
# times MiniLM's features of their names, at 224 px.
FIRST = {"caltech101": 0.42, "cifar100": 0.34, "oxford_pets3": 0.70, "pacs": 0.47}
ORDER = (
    "zero-shot",
    "linear probe",
    "CoOp, 4 tokens",
    "VPT, 2 tokens",
    "IVLP, 2 + 2",
    "MaPLe",
    "uniform 2 + 2",
    "uniform 2 + 2, distilled",
    "uniform of equal parameters",
    "random of equal parameters",
    "found, layers shuffled",
    "found",
    "found, distilled",
)


def real_tables(records: Records = RECORDS) -> str:
    """Return the tables for which there are records, as Markdown."""
    parts = [zero_shot_table(records), few_shot_table(records), search_table(records)]
    parts = [part for part in parts if part]
    if not parts:
        return ""
    head = (
        "## Two towers of real parts\n\nA ViT's image tower and a text tower distilled from MiniLM "
        "that answers with the ViT's own classifier weights; no image of the set in question was "
        "seen (`python -m benchmarks searching.real_clip`, then `searching.real_few_shot`)."
    )
    return "\n\n".join([head, *parts]) + "\n"


def zero_shot_table(records: Records) -> str:
    """Return zero-shot accuracy on sets that the model has not seen."""
    found = found_in(records, "zero_shot")
    if not found:
        return ""
    rows = [
        "Zero-shot, per cent of the test images:",
        "",
        "| set | classes | image size | written names | folders' names | first assembly, 224 px |",
        "|---|---|---|---|---|---|",
    ]
    for record in found:
        name, size = record["set"], record["model"]["image_size"]
        first = f"{100 * FIRST[name]:.0f}" if name in FIRST else "-"
        cells = [f"{100 * record['test'][how]['acc1']:.1f}" for how in ("written", "folders")]
        rows.append(
            f"| {name} | {record['classes']} | {size} | {cells[0]} | {cells[1]} | {first} |"
        )
    return "\n".join(rows)


def few_shot_table(records: Records) -> str:
    """Return base and new accuracy of every method by shots, and what sets it apart."""
    runs = complete(records)
    if not runs:
        return ""
    parts = []
    for shots in sorted({run["shots"] for run in runs}):
        some = [run for run in runs if run["shots"] == shots]
        sets, draws = sorted({run["set"] for run in some}), {run["draw"] for run in some}
        rows = [
            f"{shots} image{'s' * (shots > 1)} a class, {some[0]['image_size']} px, "
            f"{len(draws)} draw{'s' * (len(draws) > 1)} of {', '.join(sets)} ({len(some)} "
            f"run{'s' * (len(some) > 1)}); mean over runs in per cent, gains are "
            "paired over runs, with 95 % t-intervals:",
            "",
            "| method | base | new | harmonic mean | base, over zero-shot | base, over uniform of "
            "equal parameters |",
            "|---|---|---|---|---|---|",
        ]
        for name in ORDER:
            with_it = [run for run in some if name in run["rows"]]
            if not with_it:
                continue
            cells = [_mean(with_it, name, key) for key in ("base", "new", "hm")]
            over = [_gap(with_it, name, other) for other in ("zero-shot", ORDER[8])]
            rows.append(f"| {name} | {' | '.join([*cells, *over])} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def search_table(records: Records) -> str:
    """Return what the searches found: tokens by tower, and how sure alpha was."""
    runs = [run for run in complete(records) if "found" in run]
    if not runs:
        return ""
    rows = [
        "What the searches found, mean over draws (candidates 0, 2, 4, 6 in 12 image and 4 text "
        "blocks), and the validation accuracy of the mixture less that of the found lengths:",
        "",
        "| set | shots | image tokens | text tokens | blocks without a token | gap |",
        "|---|---|---|---|---|---|",
    ]
    for place in sorted({(run["set"], run["shots"]) for run in runs}):
        some = [run for run in runs if (run["set"], run["shots"]) == place]
        image = mean(sum(run["found"]["image"]) for run in some)
        text = mean(sum(run["found"]["text"]) for run in some)
        empty = mean(sum(not n for row in run["found"].values() for n in row) for run in some)
        gaps = [100 * run["search"]["gap"]["gap"] for run in some]
        rows.append(
            f"| {place[0]} | {place[1]} | {image:.1f} | {text:.1f} | {empty:.1f} | "
            f"{mean(gaps):+.1f} |"
        )
    return "\n".join(rows)


def complete(records: Records) -> list[dict[str, Any]]:
    """Return the runs in which every method has its row."""
    runs = found_in(records, "few_shot")
    return [run for run in runs if run.get("complete")]


def _mean(runs: list[dict[str, Any]], name: str, key: str) -> str:
    values = [run["rows"][name].get(key) for run in runs]
    return "-" if None in values else f"{100 * mean(values):.1f}"


def _gap(runs: list[dict[str, Any]], name: str, other: str) -> str:
    both = [run for run in runs if other in run["rows"]]
    if name == other or not both:
        return "-"
    rows = [(run["rows"][name]["base"], run["rows"][other]["base"]) for run in both]
    return interval([100 * (ours - theirs) for ours, theirs in rows], 1)
