"""The tables of all benchmarks: write RESULTS.md from the results, and nothing they do not hold.

python -m benchmarks tables
"""

import json

from benchmarks import RESULTS, ROOT, new_parser
from benchmarks.faults import campaign, memory
from benchmarks.learning import rates, starts
from benchmarks.placing.tables import placing_tables
from benchmarks.pools.demo_table import demo_table
from benchmarks.searching.real_tables import real_tables
from benchmarks.searching.tables import searching_tables
from benchmarks.speed.large_pool_table import large_pool_table
from benchmarks.speed.scaling_table import scaling_tables
from benchmarks.speed.tables import solver_table, speed_tables
from benchmarks.transfer import metrics
from benchmarks.transfer.tables import transfer_tables


def main() -> None:
    """Write `RESULTS.md`."""
    new_parser(__doc__).parse_args()
    parts = [
        "# Results\n\nWritten by `python -m benchmarks tables` from `benchmarks/results`.\n",
        demo_table(),
        transfer_tables(),
        metrics_table(),
        solver_table(RESULTS / "solver"),
        speed_tables(RESULTS / "speed"),
        scaling_tables(RESULTS / "scaling"),
        large_pool_table(),
        starts.table(),
        rates.table(),
        placing_tables(),
        searching_tables(),
        real_tables(),
        faults_tables(),
    ]
    (ROOT / "RESULTS.md").write_text("\n".join(part for part in parts if part), encoding="utf-8")


def metrics_table() -> str:
    """Return how well every metric foretells the accuracy of a source after tuning."""
    found = metrics.table()
    return f"## Which metric would have chosen the right source?\n\n{found}" if found else ""


def faults_tables() -> str:
    """Return the counts of the campaign of faults, and the peaks of memory."""
    files = sorted(campaign.FOLDER.glob("seed*.json"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    parts = []
    if records:
        parts.append(f"## What damage, kills and full disks leave\n\n{campaign.table(records)}\n")
    if memory.RESULT.is_file():
        found = json.loads(memory.RESULT.read_text(encoding="utf-8"))
        parts.append(f"## How much memory it takes\n\n{memory.table(found)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
