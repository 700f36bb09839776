"""Benchmarks: what a claim in the documents rests on, a folder for every question.

`python -m benchmarks` lists the commands. Here is where they find recipes, results
and pools.
"""

import argparse
from pathlib import Path
from typing import Any

from vprompt.results.records import Records

ROOT = Path(__file__).parent
RECIPES = ROOT / "recipes"
RESULTS = ROOT / "results"
POOLS = ROOT.parent / "pools"


def new_parser(text: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command whose help is its module's text, as it is written there."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)


def found_in(records: Records, phase: str = "") -> list[dict[str, Any]]:
    """Return the records of a phase, such as `compare`, in the order of their names."""
    return [record for _, record in records.find(f"{phase}_*" if phase else "*")]
