"""The table of the benchmark of a large pool, from its committed record."""

from benchmarks import RESULTS
from vprompt.results.records import Records

RECORDS, NAME = Records(RESULTS / "large_pool"), "large_pool"


def large_pool_table() -> str:
    """Return what 1,000 sources cost, and how often planted ones are found again."""
    if NAME not in RECORDS:
        return ""
    found = RECORDS.read(NAME)
    rows = [
        "## A pool of 1,000 prompts",
        "",
        "Times of the first table were taken on one thread beside other work, of the commands "
        "on two quiet cores.",
        "",
    ]
    if "recovery" in found:
        rows += _recovery_rows(found["recovery"])
    if "commands" in found:
        rows += _command_rows(found["commands"])
    return "\n".join(rows) + "\n"


def _recovery_rows(found: dict) -> list[str]:
    seeds = found["seeds"]
    rows = [
        f"Synthetic features of {found['sources']} sources on {found['images']} images, width "
        f"{found['width']}, {found['classes']} classes that depend on three planted sources; "
        f"{found['near_copies']} sources are near-copies. Times are the processor's, the longest "
        f"of {seeds} seeds.",
        "",
        "| what | value |",
        "|---|---|",
        f"| planted sources pass the screen | {found['planted_passed_the_screen']} of {seeds} |",
        "| planted sources have the three largest weights | "
        f"{found['planted_have_the_three_largest_weights']} of {seeds} |",
        f"| least weight on them together | {found['least_weight_on_planted']:.2f} |",
    ]
    names = {
        "statistics_s": "own ratios, and traces of the candidates",
        "sparse_solver_s": "duplicates and sparse solution",
        "weigh_s": "weights of those that are kept (hgprompt, no intervals)",
    }
    return [*rows, *(f"| {n}, s | {found['longest'][key]:.3g} |" for key, n in names.items()), ""]


def _command_rows(found: dict) -> list[str]:
    rows = [
        f"Commands on {found['sources']} artefacts of the backbone `{found['backbone']}`, "
        f"{found['training_images']} training images, interpreter start included:",
        "",
        "| command | wall s | processor s | peak MiB |",
        "|---|---|---|---|",
    ]
    for name in ("pool ls", "combine", "score"):
        part = found[name]
        peak = f"{part['peak_mib']:.0f}" if "peak_mib" in part else "not measured"
        rows.append(f"| {name} | {part['wall_s']:.1f} | {part['processor_s']:.1f} | {peak} |")
    return rows
