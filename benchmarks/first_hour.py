"""How long does docs/first-hour.md take, and do the announced times hold?

Runs every command of the page on the stand-in photographs, and some more that announce a time, each
from where the one before it left the cache. Words to read are those of the page and of what is
printed; reading is reckoned at 200 words a minute and typing at 40 words of five characters.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "first_hour.json"
READ, TYPED, LETTERS = 200, 40, 5  # words a minute, words a minute, characters of a word
INSTALLATION = ("git clone ", "cd vprompt", "make setup", ". .venv/bin/activate")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.M | re.S)
SAID = re.compile(r"about ([\d.]+) (s|min|h) more, ([\d.]+) (s|min|h) in all")
UNIT = {"s": 1, "min": 60, "h": 3600}
MORE = (
    "evaluate photos --artifact prompt",
    "search photos --epochs 3 --search-epochs 3",
    "learn photos --method linear",
    "combine elpv --pool pools/demo --shots 25 --output demo --report demo.html",
)


def main() -> None:
    """Measure, and print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file of the record.")
    parser.add_argument("--walk-only", action="store_true", help="Leave the other commands out.")
    args = parser.parse_args()
    page = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("pools", "examples"):
            (place / name).symlink_to(ROOT / name)
        walk = [run(kind, typed, place) for kind, typed in typed_on(page)]
        others = [] if args.walk_only else [run("bash", f"vprompt {each}", place) for each in MORE]
    record = {"minutes": minutes(page, walk), "walk": walk, "others": others, "machine": machine()}
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(record["minutes"])


def machine() -> dict[str, Any]:
    """Return processor, threads and versions."""
    import torch

    from vprompt.results.runs import describe_machine

    return describe_machine(torch.device("cpu"), "auto")


def typed_on(page: str) -> list[tuple[str, str]]:
    """Return what a reader types, installation apart: single commands and whole programs."""
    found = []
    for kind, block in BLOCK.findall(page):
        pieces = [block] if kind == "python" else block.splitlines()
        found += [(kind, each) for each in pieces if not each.startswith(INSTALLATION)]
    return found


def read(page: str) -> int:
    """Return the words of a page that are not typed."""
    return len(re.findall(r"\S*\w\S*", BLOCK.sub("", page)))


def run(kind: str, typed: str, place: Path) -> dict[str, Any]:
    """Run what was typed, and return its seconds, its words and what it announced."""
    if kind == "python":
        words = [sys.executable, "-c", typed]
    else:
        program, _, rest = typed.partition(" ")
        own = [sys.executable] + (["-m", "vprompt"] if program == "vprompt" else [])
        words = [*own, *shlex.split(rest)]
    began = time.perf_counter()
    environment = {
        **os.environ,
        "VPROMPT_CACHE": str(place / "cache"),
        "PYTHONPATH": str(ROOT / "src"),
    }
    done = subprocess.run(
        words, cwd=place, env=environment, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - began
    said = SAID.search(done.stderr)
    again = re.findall(r"it takes .*", done.stderr)
    # A push without sending prints whole files, of which nobody reads every line.
    shown = "" if "--dry-run" in typed else done.stdout + done.stderr
    announced = None if said is None else float(said[3]) * UNIT[said[4]]
    print(f"{seconds:6.1f} s  announced {announced}  {typed[:70]!r}", flush=True)
    return {
        "typed": typed,
        "seconds": round(seconds, 1),
        "announced": announced,
        "corrected": again,
        "printed_words": len(re.findall(r"\S*\w\S*", shown)),
    }


def minutes(page: str, walk: list[dict[str, Any]]) -> dict[str, float]:
    """Return the minutes of reading, typing and waiting, and their sum."""
    found = {
        "reading the page": read(page) / READ,
        "reading what is printed": sum(each["printed_words"] for each in walk) / READ,
        "typing": sum(len(each["typed"]) for each in walk) / LETTERS / TYPED,
        "waiting": sum(each["seconds"] for each in walk) / 60,
    }
    found["in all"] = sum(found.values())
    return {name: round(value, 1) for name, value in found.items()}
