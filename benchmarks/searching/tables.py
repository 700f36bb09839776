"""Tables of `searching.lengths`: is a searched length worth it, under a budget, at what cost?"""

import statistics
from math import exp
from typing import Any

from benchmarks import RESULTS, found_in
from benchmarks.paired import by_target, gap, interval, mean, ranks, spread
from vprompt.results.records import Records

RECORDS = Records(RESULTS / "searching")
RANDOM, BEST = "mean of random", "random, best on val200"
NAMES = {
    "uniform": "uniform",
    RANDOM: "random, mean of the draws",
    BEST: "random, best of the draws on val200",
    "found": "found by the search",
    "shuffled": "found, layers shuffled",
    "elsewhere": "found on another target",
    "placed": "PRO-VPT's last distribution",
}


def searching_tables(results: Records = RECORDS) -> str:
    """Return all tables for which there are results, as Markdown."""
    found, searches = found_in(results, "compare"), found_in(results, "search")
    parts = [compare_table(found), budget_table(found), search_table(searches)]
    parts += [rate_table(found_in(results, "rate"))]
    return "\n".join(part for part in [*parts, cost_table(results)] if part)


def _with_random(run: dict[str, Any]) -> dict[str, Any]:
    """Add the mean of the random configurations, and the one that is best on val200."""
    arms, summary = dict(run["arms"]), dict(run["summary"])
    drawn = [name for name in arms if name.startswith("random ")]
    if drawn:
        best = max(drawn, key=lambda name: (arms[name]["val_accuracy"], -arms[name]["val_loss"]))
        summary[BEST], arms[BEST] = summary[best], arms[best]
        summary[RANDOM] = statistics.mean(summary[name] for name in drawn)
        numbers = ("tokens", "val_loss", "val_accuracy")
        arms[RANDOM] = {k: statistics.mean(arms[n][k] for n in drawn) for k in numbers}
    return {**run, "summary": summary, "arms": arms}


def compare_table(found: list[dict[str, Any]]) -> str:
    """Return the accuracy of every arm of equal count, and its paired differences."""
    if not found:
        return ""
    runs = [_with_random(run) for run in found]
    first, targets = found[0], sorted({run["target"] for run in found})
    seeds = len({run["seed"] for run in found})
    drawn = sum(name.startswith("random ") for name in first["arms"])
    rows = [
        "## Is a searched length worth more than one that anyone could write down?",
        "",
        f"{len(targets)} targets ({', '.join(targets)}), {seeds} draws of about 200 training "
        f"images, n = {len(runs)}; backbone `demo` at {first['image_size']} px. The search of "
        "`dpl` (no budget, alpha's images val200) finds a length for every block; then a fresh "
        "prompt is trained for it and for every control of as many tokens: "
        f"{first['train']['epochs']} epochs, batch {first['train']['batch_size']}, the rate that "
        "`placing.moves rates` chose with VPT-Deep, last epoch, nothing chosen. "
        f"{drawn} random configurations per target and draw. All candidates of a target and draw "
        "see the test split once, together. "
        "Accuracy in %, mean over targets ± its standard deviation between draws; differences are "
        "paired over target and draw, with 95 % t-intervals; rank 1 is the best of the arms that "
        "all runs have.",
        "",
        "| arm | n | accuracy | over uniform | over random, mean | val log-loss over uniform "
        "| tokens | rank |",
        "|---|---|---|---|---|---|---|---|",
    ]
    everywhere = [arm for arm in NAMES if all(arm in run["summary"] for run in runs)]
    rank = ranks(runs, everywhere)
    for arm, name in NAMES.items():
        own = [run for run in runs if arm in run["summary"]]
        if not own:
            continue
        over = "" if arm == "uniform" else gap(own, arm, "uniform")
        random = "" if arm == RANDOM or RANDOM not in own[0]["summary"] else gap(own, arm, RANDOM)
        losses = [r["arms"][arm]["val_loss"] - r["arms"]["uniform"]["val_loss"] for r in own]
        tokens = statistics.mean(run["arms"][arm]["tokens"] for run in own)
        rows.append(
            f"| {name} | {len(own)} | {spread(own, arm)} | {over} | {random} "
            f"| {'' if arm == 'uniform' else interval(losses, 3)} | {tokens:.0f} "
            f"| {f'{rank[arm]:.2f}' if arm in rank else ''} |"
        )
    rows += by_target(runs, {arm: NAMES[arm] for arm in everywhere})
    return "\n".join(rows) + "\n"


def budget_table(found: list[dict[str, Any]]) -> str:
    """Return the accuracy under every budget beside uniform lengths of the same count."""
    own = [run for run in found if any(name.startswith("budget ") for name in run["arms"])]
    if not own:
        return ""
    budgets = [name for name in own[0]["arms"] if name.startswith("budget ")]
    pairs = [(name, name.replace("budget", "uniform")) for name in budgets]
    rows = [
        "## Lengths under a budget",
        "",
        f"The same with `max_prompts`, on {len(own)} of the runs above; `uniform` has as many "
        "tokens as the search under that budget found.",
        "",
        "| budget | tokens found | found | uniform | found over uniform |",
        "|---|---|---|---|---|",
    ]
    for name, even in [*pairs, ("found", "uniform")]:
        tokens = statistics.mean(run["arms"][name]["tokens"] for run in own)
        shown = "none" if name == "found" else name.removeprefix("budget ")
        rows.append(
            f"| {shown} | {tokens:.0f} | {mean(own, name):.1f} | {mean(own, even):.1f} "
            f"| {gap(own, name, even)} |"
        )
    return "\n".join(rows) + "\n"


def search_table(searches: list[dict[str, Any]]) -> str:
    """Return what the searches chose: lengths per block, spread over seeds, the gap."""
    free = [run for run in searches if "memory" in run and run["budget"] is None]
    if not free:
        return ""
    rows = [
        "## What the search finds",
        "",
        "Free searches. `agree` is the share of blocks for which two draws of a target choose the "
        "same length (in brackets: expected by chance from how often each length is chosen); "
        "`gap` is validation accuracy of the mixture less that of the found lengths, in points; "
        "`confidence` the mean weight of the chosen length.",
        "",
        "| target | found, block by block | tokens | agree | gap | confidence |",
        "|---|---|---|---|---|---|",
    ]
    for target in sorted({run["target"] for run in free}):
        own = [run for run in free if run["target"] == target]
        lengths = "<br>".join(" ".join(map(str, run["found"])) for run in own)
        tokens = ", ".join(str(sum(run["found"])) for run in own)
        gaps = statistics.mean(run["memory"]["gap"]["gap"] for run in own)
        sure = statistics.mean(_confidence(run["memory"]) for run in own)
        rows.append(
            f"| {target} | {lengths} | {tokens} | {agreement([r['found'] for r in own])} "
            f"| {100 * gaps:+.1f} | {sure:.2f} |"
        )
    return "\n".join(rows) + "\n"


def agreement(found: list[list[int]]) -> str:
    """Return how often two draws agree on a block's length, and how often chance would."""
    if len(found) < 2:
        return ""
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    same = statistics.mean(x == y for a, b in pairs for x, y in zip(a, b, strict=True))
    chance = statistics.mean(x == y for a, b in pairs for x in a for y in b)
    return f"{100 * same:.0f} % ({100 * chance:.0f} %)"


def _confidence(memory: dict[str, Any]) -> float:
    """Return the mean weight of the lengths found."""
    last, lengths = memory["alpha"][-1], memory["candidates"]
    weights = []
    for row, length in zip(last, memory["found"][-1], strict=True):
        total = sum(exp(value - max(row)) for value in row)
        weights.append(exp(row[lengths.index(length)] - max(row)) / total)
    return statistics.mean(weights)


def rate_table(found: list[dict[str, Any]]) -> str:
    """Return what lengths that were searched at several rates of alpha reach on val200."""
    if not found:
        return ""
    rows = [
        "## The rate of alpha",
        "",
        "Validation images alone: what a fresh prompt of the found lengths reaches on val200, "
        "which alpha has seen.",
        "",
        "| target | rate | tokens | confidence | gap | accuracy | log-loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in sorted(found, key=lambda run: (run["target"], run["alpha_lr"])):
        reached = run["reached"]
        rows.append(
            f"| {run['target']} | {run['alpha_lr']:g} | {reached['tokens']} "
            f"| {_confidence(run['memory']):.2f} | {100 * run['memory']['gap']['gap']:+.1f} "
            f"| {100 * reached['val_accuracy']:.1f} | {reached['val_loss']:.3f} |"
        )
    return "\n".join(rows) + "\n"


def cost_table(results: Records) -> str:
    """Return the time of a step over that of VPT-Deep."""
    found = found_in(results, "cost")
    if not found:
        return ""
    found.sort(key=lambda run: run["image_size"])
    sizes = [f"{run['image_size']} px" for run in found]
    one = found[0]
    rows = [
        "## What a search costs",
        "",
        "Seconds per step of 64 training images over those of VPT-Deep (10 tokens a block), median "
        f"of {len(one['seconds']['vpt']['cpu'])} steps in turns, processor time (wall time in "
        f"brackets), {one['machine']['threads']} thread, {one['machine']['precision']}; candidates "
        "0, 5, 10, 20. A step of the search holds one of alpha on 16 images. `as published` runs a "
        "whole attention layer for every candidate.",
        "",
        "| step | " + " | ".join(sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name in sorted(one["over_vpt"], key=lambda name: one["over_vpt"][name]["cpu"]):
        ratios = [run["over_vpt"][name] for run in found]
        cells = [f"{ratio['cpu']:.2f} ({ratio['wall']:.2f})" for ratio in ratios]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
