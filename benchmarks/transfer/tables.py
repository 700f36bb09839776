"""Tables of `transfer.methods`: does combining win, and what its settings are worth."""

import statistics

from benchmarks import RESULTS, found_in
from benchmarks.paired import gap, interval, mean, ranks, spread
from vprompt.results.records import Records

RECORDS = Records(RESULTS / "transfer")


def transfer_tables() -> str:
    """Return all tables for which there are results, as Markdown."""
    parts = [
        transfer_table(),
        choice_table(),
        guarded_table("settle", "Alignment, refining and safeguard, on validation images"),
        guarded_table("guard", "The safeguard with few images, on validation images"),
        soften_table(),
    ]
    return "\n".join(part for part in parts if part)


def transfer_table() -> str:
    """Return the comparison of transfer methods: mean over runs, differences, ranks."""
    found = found_in(RECORDS, "compare")
    if not found:
        return ""
    names = [name for name in found[0]["summary"] if name != "no prompt"]
    methods = [name.removesuffix(", tuned") for name in names if name.endswith(", tuned")]
    targets = sorted({run["target"] for run in found})
    first = found[0]
    rows = [
        "## Does combining win?",
        "",
        f"{len(targets)} targets ({', '.join(targets)}), {len(found) // len(targets)} draws each "
        f"of about 200 training images (n = {len(found)}); sources are the 12 prompts of the other "
        f"sets. Every start is tuned alike: {first['train']['epochs']} epochs, rate "
        f"{first['train']['lr']:g}, batch {first['train']['batch_size']}, epoch of least "
        "validation loss. Test accuracy in %, mean over targets ± its standard deviation between "
        "draws; `over uniform` is the mean paired difference with its 95 % t-interval over target "
        "and draw; rank is the average over runs, 1 the best. `no prompt` is the closed-form head "
        "on frozen features.",
        "",
        "| start | untuned | tuned | tuned over uniform tuned | rank tuned |",
        "|---|---|---|---|---|",
        f"| no prompt | {spread(found, 'no prompt')} | | "
        f"{gap(found, 'no prompt', 'uniform, tuned')} | |",
    ]
    rank = ranks(found, [f"{name}, tuned" for name in methods])
    for name in methods:
        tuned = f"{name}, tuned"
        over = "" if name == "uniform" else gap(found, tuned, "uniform, tuned")
        rows.append(
            f"| {name} | {spread(found, f'{name}, untuned')} | {spread(found, tuned)} | {over} "
            f"| {rank[tuned]:.2f} |"
        )
    rows += ["", "By target, mean over draws, tuned (untuned):", ""]
    rows += [
        "| target | no prompt | " + " | ".join(methods) + " |",
        "|---" * (len(methods) + 2) + "|",
    ]
    for target in targets:
        own = [run for run in found if run["target"] == target]
        cells = [
            f"{mean(own, f'{name}, tuned'):.1f} ({mean(own, f'{name}, untuned'):.1f})"
            for name in methods
        ]
        rows.append(f"| {target} | {mean(own, 'no prompt'):.1f} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def choice_table() -> str:
    """Return what every score of the weights reaches on val200, untuned."""
    return _settings_table("choose", "Settings of the weights, on validation images")


def guarded_table(phase: str, title: str) -> str:
    """Return what starts reach on val200, and every rule of the safeguard between them."""
    found = found_in(RECORDS, phase)
    return _settings_table(phase, title) + _guard_rows(found) if found else ""


def _guard_rows(found: list[dict]) -> str:
    rows = [
        "",
        "The safeguard starts from uniform weights or the best single source instead of the shrunk "
        "sum where their cross-validated training loss is smaller by so many standard errors of "
        "the paired difference:",
        "",
        "| standard errors | switches | accuracy | log-loss |",
        "|---|---|---|---|",
    ]
    for errors in (None, 0, 1, 2, 3):
        begun = [_guarded(run, errors) for run in found]
        moved = sum(name != "shrunk" for name in begun)
        kept = [run["found"][name] for run, name in zip(found, begun, strict=True)]
        accuracy = 100 * statistics.mean(value["val_accuracy"] for value in kept)
        loss = statistics.mean(value["val_loss"] for value in kept)
        what = "no safeguard" if errors is None else errors
        rows.append(f"| {what} | {moved} of {len(found)} | {accuracy:.1f} | {loss:.3f} |")
    return "\n".join(rows) + "\n"


def soften_table() -> str:
    """Return what weights pulled towards the plain average reach on val200 after tuning."""
    found = found_in(RECORDS, "soften")
    if not found:
        return ""
    epochs = found[0]["train"]["epochs"]
    how = f"after tuning the sum for {epochs} epochs, at the epoch of least validation loss"
    return _settings_table("soften", "Weights pulled towards uniform, on validation images", how)


def _guarded(run: dict, errors: float | None) -> str:
    """Return the start that a safeguard of so many standard errors takes."""
    gains = {"shrunk": 0.0}
    for name in ("uniform", "best") if errors is not None else ():
        mean, less_one = run["found"][name]["cv_gain_over_shrunk"]
        gains[name] = mean - (errors or 0) * (mean - less_one)
    return max(gains, key=gains.__getitem__)


def _settings_table(
    phase: str, title: str, how: str = "with a closed-form head on the untuned sum"
) -> str:
    found = found_in(RECORDS, phase)
    if not found:
        return ""
    names = list(found[0]["summary"])
    targets = sorted({run["target"] for run in found})
    sizes = sorted({run["backbone"]["data_config"]["input_size"][1] for run in found})
    images = 50 if phase == "guard" else 200
    each, odd = divmod(len(found), len(targets))
    draws = "with a second draw of some where it was run" if odd else f"{each} draws of each"
    rows = [
        f"## {title}",
        "",
        f"n = {len(found)}: {len(targets)} targets, {draws}; {' or '.join(map(str, sizes))} px, "
        f"about {images} training images each. Accuracy in % and log-loss on val200 {how}, no test "
        "image seen. Differences to uniform weights are paired, with 95 % t-intervals over the "
        "runs.",
        "",
        "| setting | accuracy | over uniform | log-loss | over uniform (less is better) |",
        "|---|---|---|---|---|",
    ]
    for run in found:
        run["loss"] = {name: value["val_loss"] for name, value in run["found"].items()}
    for name in names:
        loss = statistics.mean(run["loss"][name] for run in found)
        better = worse = ""
        if name != "uniform":
            better = gap(found, name, "uniform")
            worse = interval([run["loss"][name] - run["loss"]["uniform"] for run in found], 3)
        rows.append(f"| {name} | {mean(found, name):.1f} | {better} | {loss:.3f} | {worse} |")
    return "\n".join(rows) + "\n"
