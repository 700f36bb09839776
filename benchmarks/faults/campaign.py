"""Campaign: damage, kills, races, full disks and broken networks, with a table of counts.

Every trial ends in one of four ways: `same` (the right result), `refused` (a sentence), `wrong`
(another result, nothing said) or `traceback`. The last two are what must not happen, nor `litter`,
which is counted beside them. What is finished of a seed is in its file, and is not done again.

    python -m benchmarks faults.campaign --seed 1                  # all of it, about 40 minutes
    python -m benchmarks faults.campaign --seed 1 --parts kills    # one part, or some
    python -m benchmarks faults.campaign --seed 1 --share 0.02     # a fiftieth of it
"""

import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, new_parser
from benchmarks.faults import artefacts, caches, commands, executors, hubs, strangers
from benchmarks.faults.children import cache
from benchmarks.faults.outcomes import BAD
from vprompt.core.files import write_json

FOLDER = RESULTS / "faults"
Trials = Callable[[Path, int, int], Counter[str]]


@dataclass(frozen=True)
class Part:
    """So many trials of one kind, done `together` at a time; what they are, for the table."""

    run: Trials
    trials: int
    together: int
    what: str


PARTS = {
    "mutations": Part(artefacts.mutations, 1000, 100, "an artefact's file damaged, then loaded"),
    "damages": Part(caches.damages, 200, 25, "a file of the cache damaged, all computed again"),
    "saves": Part(artefacts.saves, 60, 30, "a save killed at a change of a file"),
    "loads": Part(artefacts.loads, 2000, 500, "a load while the artefact is replaced"),
    "kills": Part(commands.kills, 252, 6, "whole commands killed or signalled, and run again"),
    "full disks": Part(
        commands.full_disks, 120, 6, "whole commands refused by the disk, and run again"
    ),
    "small disks": Part(commands.small_disks, 48, 6, "whole commands on a disk of kilobytes"),
    "strangers": Part(
        strangers.oddities, 400, 40, "commands on artefacts with one odd value in config or record"
    ),
    "fetches": Part(hubs.fetches, 80, 8, "a fetch from a hub that goes wrong, and again"),
    "processes": Part(executors.processes, 16, 16, "calls whose process dies"),
    "ray": Part(executors.ray, 16, 16, "calls whose Ray worker dies"),
}


def main() -> None:
    """Run what is not finished and print a table; exit 1 on anything that must not happen."""
    parser = new_parser(__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each part")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/faults")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = (asked.output or FOLDER) / f"seed{asked.seed}.json"
    record = json.loads(path.read_text()) if path.is_file() else {"seed": asked.seed, "parts": {}}
    for name in asked.parts:
        part = PARTS[name]
        _continue(name, math.ceil(part.trials * asked.share), record, path)
    print(table([record]))
    if any(found["counts"].get(bad) for found in record["parts"].values() for bad in BAD):
        raise SystemExit(1)


def _continue(name: str, wanted: int, record: dict[str, Any], path: Path) -> None:
    """Do what is left of a part; its file is written after every few trials."""
    part = PARTS[name]
    found = record["parts"].setdefault(name, {"trials": 0, "counts": {}, "seconds": 0.0})
    scratch = Path(tempfile.mkdtemp(prefix="vprompt-faults."))
    try:
        while found["trials"] < wanted:
            began, first = time.perf_counter(), found["trials"]
            count = min(part.together, wanted - first)
            place = scratch / (name if name in _SHARED else f"{name}{first}")
            with cache(scratch / "cache"):
                counts = part.run(place, 1_000_003 * record["seed"] + first, count)
            found["counts"] = dict(Counter(found["counts"]) + counts)
            found["trials"] = first + count
            found["seconds"] = round(found["seconds"] + time.perf_counter() - began, 1)
            write_json(path, record)
            print(f"{name}: {found}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_SHARED = (
    "kills",
    "full disks",
    "small disks",
    "strangers",
)  # what builds a world once for all of its trials


def table(records: list[dict[str, Any]]) -> str:
    """Return the counts of all seeds and parts in Markdown."""
    heads = ["hit", "same", "refused", *BAD]
    lines = ["| seed | trials of | | " + " | ".join(heads) + " | s |"]
    lines.append("|---" * (len(heads) + 4) + "|")
    for record in records:
        for name, found in record["parts"].items():
            counts = found["counts"]
            what = PARTS[name].what if name in PARTS else name
            cells = [str(counts.get(head, 0)) for head in heads]
            lines.append(
                f"| {record['seed']} | {what} | {found['trials']} | {' | '.join(cells)} | "
                f"{found['seconds']:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
