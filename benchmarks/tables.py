"""Tables: write RESULTS.md from the committed result files, and nothing that they do not hold."""

import json
import statistics
from pathlib import Path

import metrics
from large_pool_table import large_pool_table
from paired import gap, interval, mean, ranks, spread
from placing_tables import placing_tables
from scaling_table import scaling_tables
from searching_tables import searching_tables
from speed_tables import speed_tables

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> None:
    """Write `RESULTS.md`."""
    parts = ["# Results\n\nWritten by `python benchmarks/tables.py` from `benchmarks/results`.\n"]
    parts += [learn_table(), transfer_table(), choice_table()]
    parts += [
        guarded_table("settle", "Alignment, refining and safeguard, on validation images"),
        guarded_table("guard", "The safeguard with few images, on validation images"),
    ]
    parts += [soften_table(), metrics_table()]
    parts += [solver_table(), speed_tables(RESULTS / "speed"), scaling_tables(RESULTS / "scaling")]
    parts += [large_pool_table(), start_table()]
    parts += [placing_tables(), searching_tables()]
    (HERE / "RESULTS.md").write_text("\n".join(part for part in parts if part), encoding="utf-8")


def learn_table() -> str:
    """Return one row per learned set: frozen features, learned prompt, paired gain."""
    rows = [
        "## Learning against the linear probe of the same features",
        "",
        "Backbone `demo` at 112 px, `vprompt learn` as it is (10 deep tokens a block, 10 epochs), "
        "train800, best epoch on val200, test split once. `closed-form` is the linear probe with "
        "cross-validated strength, `linear` is that probe tuned for as many epochs. The interval "
        "is paired, 95 %, over test images only; n = 1 seed a row.",
        "",
        "| set | seed | closed-form | linear | vpt | vpt over closed-form |",
        "|---|---|---|---|---|---|",
    ]
    gains = []
    for path in sorted((RESULTS / "learn").glob("*_vpt_seed*.json")):
        run = json.loads(path.read_text())
        linear = path.with_name(path.name.replace("_vpt_", "_linear_"))
        rows.append(_learn_row(run, json.loads(linear.read_text()) if linear.is_file() else None))
        gains.append(run["test"]["learned"]["acc1"] - run["test"]["no prompt"]["acc1"])
    better, worse = sum(g > 1e-9 for g in gains), sum(g < -1e-9 for g in gains)
    rows += ["", f"{better} gains, {len(gains) - better - worse} ties, {worse} losses."]
    return "\n".join(rows) + "\n"


def _learn_row(run: dict, linear: dict | None) -> str:
    plain, learned = run["test"]["no prompt"], run["test"]["learned"]
    gain = learned["gain"]
    probe = "" if linear is None else f"{100 * linear['test']['learned']['acc1']:.1f}"
    return (
        f"| {run['task']['name']} | {run['train']['seed']} | {100 * plain['acc1']:.1f} | {probe} "
        f"| {100 * learned['acc1']:.1f} | {100 * gain['difference']:+.1f} "
        f"({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}) |"
    )


def _runs(phase: str) -> list[dict]:
    return [
        json.loads(path.read_text())
        for path in sorted((RESULTS / "transfer").glob(f"{phase}_*.json"))
    ]


def transfer_table() -> str:
    """Return the comparison of transfer methods: mean over runs, differences, ranks."""
    found = _runs("compare")
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
    found = _runs(phase)
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
    found = _runs("soften")
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
    found = _runs(phase)
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


def metrics_table() -> str:
    """Return how well every metric foretells the accuracy of a source after tuning."""
    found = metrics.table(metrics.RESULTS)
    return f"## Which metric would have chosen the right source?\n\n{found}" if found else ""


def solver_table() -> str:
    """Return the times of the solver, the evidence pass, and Algorithm 1 as written."""
    rows = [
        "## Solver and evidence",
        "",
        "Two cores; one command each, `benchmarks/solver.py`.",
        "",
    ]
    rows += ["| what | value |", "|---|---|"]
    for part in ("solver", "evidence", "algorithm"):
        path = RESULTS / "solver" / f"{part}.json"
        if path.is_file():
            values = json.loads(path.read_text())
            values.pop("machine")
            rows += [
                f"| {part}: {key.replace('_', ' ')} | {value:.4g} |"
                for key, value in values.items()
            ]
    return "\n".join(rows) + "\n" if len(rows) > 6 else ""


def start_table() -> str:
    """Return the cross-validated log-loss of every start on every set."""
    path = RESULTS / "prompt_start.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text())
    starts = list(next(iter(found["starts"].values())))
    rows = [
        "## Starts of a prompt, before any training",
        "",
        "Cross-validated log-loss (accuracy in %) of the closed-form head on train800; "
        f"{found['num_virtual_tokens']} tokens, or {found['num_virtual_tokens']} at every block.",
        "",
        "| set | " + " | ".join(starts) + " |",
        "|---" * (len(starts) + 1) + "|",
    ]
    for name, values in found["starts"].items():
        cells = [f"{v['cv_loss']:.3f} ({100 * v['cv_accuracy']:.1f})" for v in values.values()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
