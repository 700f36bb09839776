"""Tables: write RESULTS.md from the committed result files, and nothing that they do not hold."""

import json
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> None:
    """Write `RESULTS.md`."""
    parts = ["# Results\n\nWritten by `python benchmarks/tables.py` from `benchmarks/results`.\n"]
    parts += [learn_table(), start_table()]
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


def learn_table() -> str:
    """Return one row per learned set: frozen features, learned prompt, paired gain."""
    rows = [
        "## Learning against the linear probe of the same features",
        "",
        "Backbone `demo` at 112 px, `vprompt learn` as it is (10 deep tokens a block) but for the "
        "epochs, train800, best epoch on val200, test split once. `closed-form` is the linear "
        "probe with cross-validated strength, `linear` is that probe tuned for as many epochs. "
        "n = 1 seed a row; the interval is paired, 95 %, over test images only.",
        "",
        "| set | epochs | seed | closed-form | linear | vpt | vpt over closed-form |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted((RESULTS / "learn").glob("*_vpt_*.json")):
        run = json.loads(path.read_text())
        linear = path.with_name(path.name.replace("_vpt_", "_linear_"))
        rows.append(_learn_row(run, json.loads(linear.read_text()) if linear.is_file() else None))
    return "\n".join(rows) + "\n"


def _learn_row(run: dict, linear: dict | None) -> str:
    plain, learned = run["test"]["no prompt"], run["test"]["learned"]
    gain = learned.get("gain")
    difference = f"{100 * (learned['acc1'] - plain['acc1']):+.1f}"
    if gain:
        difference += f" ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
    probe = "" if linear is None else f"{100 * linear['test']['learned']['acc1']:.1f}"
    train = run["train"]
    return (
        f"| {run['task']['name']} | {train['epochs']} | {train['seed']} | "
        f"{100 * plain['acc1']:.1f} | {probe} | {100 * learned['acc1']:.1f} | {difference} |"
    )


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
