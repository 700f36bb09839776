"""Tables of `placing.moves`: does it help to move tokens, what do scores know, what is the cost?"""

import statistics
from typing import Any

from benchmarks import RESULTS, found_in
from benchmarks.paired import by_target, gap, interval, ranks, spread
from vprompt.results.records import Records

RECORDS = Records(RESULTS / "placing")
NAMES = {
    "vpt": "VPT-Deep",
    "vpt_twice": "VPT-Deep, twice the epochs",
    "vpt_paper_start": "VPT-Deep, the paper's start and dropout",
    "paper": "PRO-VPT paper",
    "robust": "PRO-VPT robust",
    "random_destination": "robust, random destination",
    "in_place": "robust, made anew in place",
    "random_leaver": "robust, random leaver",
    "static": "VPT-Deep at robust's last placement",
    "taylor_norm": "robust, score taylor_norm",
}


def placing_tables(results: Records = RECORDS) -> str:
    """Return all tables for which there are results, as Markdown."""
    parts = [
        choose_table(results),
        compare_table(results),
        score_table(results),
        cost_table(results),
        carry_table(results),
    ]
    return "\n".join(part for part in parts if part)


def _joined(found: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the arms, and one record per target and draw that has all of them."""
    arms = [arm for arm in NAMES if any(run["arm"] == arm for run in found)]
    cases: dict[tuple[str, int], dict[str, Any]] = {}
    for run in found:
        key = (run["target"], run["seed"])
        case = cases.setdefault(
            key, {"target": key[0], "seed": key[1], "summary": {}, "loss": {}, "moves": {}}
        )
        case["summary"][run["arm"]] = run["acc1"]
        case["loss"][run["arm"]] = run["val_loss"]
        place = run["placement"] or {"decisions": []}
        case["moves"][run["arm"]] = sum(d["moved"] for d in place["decisions"])
    whole = [case for case in cases.values() if set(case["summary"]) == set(arms)]
    return arms, sorted(whole, key=lambda case: (case["target"], case["seed"]))


def choose_table(results: Records) -> str:
    """Return what variants of `robust` reach on validation images, where one was chosen."""
    cases: dict[tuple[str, int], dict[str, Any]] = {}
    for run in found_in(results, "choose"):
        cases.setdefault((run["target"], run["seed"]), {})[run["variant"]] = run
    if not cases:
        return ""
    variants = {name: run["method"] for name, run in next(iter(cases.values())).items()}
    whole = [case for case in cases.values() if set(case) == set(variants)]
    rows = [
        "## Which moves are worth it, by validation images alone",
        "",
        f"The runs of the next table for variants of PRO-VPT robust on val200, the test split "
        f"closed: {len({target for target, _ in cases})} targets, n = {len(whole)} runs. Paired "
        "differences to VPT-Deep with 95 % t-intervals, accuracy in points.",
        "",
        "| variant | val accuracy | val log-loss | training loss |",
        "|---|---|---|---|",
    ]
    for name in sorted(set(variants) - {"vpt"}, key=lambda name: variants[name]):
        cells = []
        for key, scale, digits in (
            ("val_accuracy", 100, 1),
            ("val_loss", 1, 3),
            ("train_loss", 1, 3),
        ):
            over = [scale * (case[name][key] - case["vpt"][key]) for case in whole]
            cells.append(interval(over, digits))
        rows.append(f"| `{variants[name]}` | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def compare_table(results: Records) -> str:
    """Return every arm's accuracy, its paired differences, validation loss and moves."""
    arms, found = _joined(found_in(results, "compare"))
    if not found:
        return ""
    first = found_in(results, "compare")[0]
    targets = sorted({run["target"] for run in found})
    chosen = {run["target"]: run["train"]["lr"] for run in found_in(results, "compare")}
    rates = ", ".join(f"{target} {chosen[target]:g}" for target in targets)
    rows = [
        "## Does it help to move tokens between blocks?",
        "",
        f"{len(targets)} targets ({', '.join(targets)}), n = {len(found)} runs of about 200 "
        f"training images; backbone `demo` at {first['image_size']} px, 10 tokens a block at the "
        f"start. The learning rate of a target is the best of three on val200 for VPT-Deep "
        f"({rates}), the same for all arms; {first['train']['epochs']} epochs (one arm twice as "
        "many) of batches of 16, the last epoch, the test split opened once. "
        "Accuracy in %, mean over targets ± its standard deviation between draws; differences are "
        "paired over target and draw, with 95 % t-intervals; rank 1 is the best.",
        "",
        "| arm | accuracy | over VPT-Deep | over a random destination | val log-loss over VPT-Deep "
        "| rank | moves |",
        "|---|---|---|---|---|---|---|",
    ]
    rank = ranks(found, arms)
    for arm in arms:
        over = "" if arm == "vpt" else gap(found, arm, "vpt")
        random = ""
        if "random_destination" in arms and arm != "random_destination":
            random = gap(found, arm, "random_destination")
        loss = interval([run["loss"][arm] - run["loss"]["vpt"] for run in found], 3)
        moves = statistics.mean(run["moves"][arm] for run in found)
        rows.append(
            f"| {NAMES[arm]} | {spread(found, arm)} | {over} | {random} "
            f"| {'' if arm == 'vpt' else loss} | {rank[arm]:.2f} | {moves:.1f} |"
        )
    rows += by_target(found, {arm: NAMES[arm] for arm in arms})
    return "\n".join(rows) + "\n"


def score_table(results: Records) -> str:
    """Return every score's rank correlation with exact ablation, over the course of training."""
    found = found_in(results, "scores")
    if not found:
        return ""
    rows = [
        "## What do scores know?",
        "",
        "Spearman rank correlation of each score with exact ablation of every token on the same "
        f"{found[0]['images']} training images (and, in brackets, the share of the best single "
        "removal that the highest score obtains), before training, in the middle and after; mean "
        "over runs. `gain` is the same for insertions of four new vectors in every block; `other "
        "images` reads the score from as many others.",
    ]
    for start in sorted({run["start"] for run in found}):
        own = [run["found"] for run in found if run["start"] == start]
        times = [when for when in ("start", "middle", "end") if all(when in run for run in own)]
        rows += ["", f"Tokens that start as `{start}`, n = {len(own)}:", ""]
        rows += ["| score | " + " | ".join(times) + " |", "|---" * (len(times) + 1) + "|"]
        for name in own[0][times[0]]["spearman"]:
            cells = [
                _cell([(r[w]["spearman"][name], r[w]["captured"][name]) for r in own])
                for w in times
            ]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        for name in ("gain", "gain, exact"):
            pairs = [
                [(r[w]["gains"][name]["spearman"], r[w]["gains"][name]["captured"]) for r in own]
                for w in times
            ]
            rows.append(f"| {name} | " + " | ".join(map(_cell, pairs)) + " |")
        idle = [f"{100 * statistics.mean(r[w]['idle'] for r in own):.0f} %" for w in times]
        rows.append("| tokens whose removal helps | " + " | ".join(idle) + " |")
    return "\n".join(rows) + "\n"


def _cell(pairs: list[tuple[float | None, float | None]]) -> str:
    shown = []
    for values in zip(*pairs, strict=True):
        known = [value for value in values if value is not None]
        shown.append(f"{statistics.mean(known):.2f}" if known else "none")
    return f"{shown[0]} ({shown[1]})"


def cost_table(results: Records) -> str:
    """Return the time of an epoch over that of VPT-Deep."""
    if "cost" not in results:
        return ""
    found = results.read("cost")
    rows = [
        "## What moving costs",
        "",
        f"One epoch over one of VPT-Deep, median of {len(found['seconds']['vpt']['cpu'])} epochs "
        f"in turns, {found['machine']['threads']} thread(s), {found['machine']['precision']}; "
        "scoring and moves included.",
        "",
        "| method | processor time | wall time |",
        "|---|---|---|",
    ]
    for name, ratio in found["over_vpt"].items():
        rows.append(f"| {name} | {ratio['cpu']:.2f} | {ratio['wall']:.2f} |")
    if "within_epochs" in results:
        shares = results.read("within_epochs")["over_plain_steps"]
        vpt = statistics.median(shares.pop("vpt"))
        [robust] = map(statistics.median, shares.values())
        rows += [
            "",
            "Between epochs the machine's speed drifted by more than a few per cent. Each epoch "
            "over as many of its own unscored steps, median of "
            f"{len(next(iter(shares.values())))}: VPT-Deep {vpt:.3f}, robust {robust:.3f}; "
            f"{robust / vpt:.3f} times.",
        ]
    return "\n".join(rows) + "\n"


def carry_table(results: Records) -> str:
    """Return what combining prompts that moved reaches, beside prompts that did not."""
    found = found_in(results, "carry")
    if not found:
        return ""
    rows = [
        "## Does a placement carry over?",
        "",
        "HGPrompt on two pools of the same sets: prompts of VPT-Deep, and prompts that moved, "
        "brought to one placement. Test accuracy in %.",
        "",
        "| target | seed | pool | combined | tuned | own tokens |",
        "|---|---|---|---|---|---|",
    ]
    for run in found:
        aligned = run["run"]["aligned"]
        own = ""
        if isinstance(aligned, dict):
            own = f"{100 * statistics.mean(aligned['own']):.0f} %"
        summary = run["summary"]
        rows.append(
            f"| {run['target']} | {run['seed']} | {run['pool']} "
            f"| {100 * summary['combined, untuned']:.1f} | {100 * summary['tuned']:.1f} | {own} |"
        )
    return "\n".join(rows) + "\n"
