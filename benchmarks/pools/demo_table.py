"""The table of `pools.demo`: what learning a prompt gives over the features as they are."""

from benchmarks import RESULTS
from vprompt.results.records import Records

RECORDS = Records(RESULTS / "learn")


def demo_table() -> str:
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
    for name, run in RECORDS.find("*_vpt_seed*"):
        linear = name.replace("_vpt_", "_linear_")
        rows.append(_learn_row(run, RECORDS.read(linear) if linear in RECORDS else None))
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
