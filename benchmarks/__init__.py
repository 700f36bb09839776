"""Benchmarks: what a claim in the documents rests on, a folder for every question.

`python -m benchmarks` lists the commands. Here is where they find recipes, results
and pools.
"""

from pathlib import Path
from typing import Any

from vprompt.results.records import Records

ROOT = Path(__file__).parent
RECIPES = ROOT / "recipes"
RESULTS = ROOT / "results"
POOLS = ROOT.parent / "pools"


def found_in(records: Records, phase: str = "") -> list[dict[str, Any]]:
    """Return the records of a phase, such as `compare`, in the order of their names."""
    return [record for _, record in records.find(f"{phase}_*" if phase else "*")]
