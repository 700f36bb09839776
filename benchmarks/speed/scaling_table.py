"""The tables of several workers and of what large work costs, from results/scaling."""

from pathlib import Path
from typing import Any

from benchmarks.speed import cost
from vprompt.results.records import Records

DEVICES = 8


def scaling_tables(folder: Path) -> str:
    """Return the speed-up of every executor and the hours by measured speed; empty without any."""
    found = dict(Records(folder).find())
    speeds = [record for name, record in found.items() if name.startswith("speed_")]
    grids = [record for name, record in found.items() if not name.startswith("speed_")]
    parts = [_grids(grids)] if grids else []
    parts += [_hours(speed) for speed in speeds]
    return "## Many runs, and large ones\n\n" + "\n\n".join(parts) + "\n" if parts else ""


def _grids(grids: list[dict[str, Any]]) -> str:
    rows = [
        f"{grids[0]['runs']} runs (`python -m benchmarks speed.scaling`: VPT-Deep on two generated "
        "sets, 70 px), empty caches and fresh workers of one processor each, whose start is part "
        "of the time.",
        "",
        "| executor | one worker, s | two workers, s | speed-up | same results to the last bit |",
        "|---|---|---|---|---|",
    ]
    for grid in grids:
        one, two = (grid["seconds_by_workers"][count] for count in ("1", "2"))
        same = "yes" if grid["same_results"] else "no"
        rows.append(
            f"| {grid['executor']} | {one:.0f} | {two:.0f} | {grid['speed_up']:.2f} | {same} |"
        )
    return "\n".join(rows)


def _hours(speed: dict[str, Any]) -> str:
    cores = speed["machine"]["cores"]
    rows = [
        f"Measured on `{speed['model']}` at 224 px on {speed['device']} ({cores} cores, "
        f"{speed['precision']}), {speed['tokens']} tokens in the sequence, batch {speed['batch']}: "
        f"{speed['train_images_per_s']:.2f} images a second forward and backward, "
        f"{speed['forward_images_per_s']:.2f} forward. At this speed, and on {DEVICES} such "
        "machines:",
        "",
        "```",
        *cost.hours(speed, DEVICES, 1.0),
        "```",
    ]
    return "\n".join(rows)
