"""Strangers: artefacts whose digests fit and whose texts and numbers are made to break things.

One value of a config or of a run's record is replaced by an odd one, and every command that reads
an artefact has to end in a result or in a sentence, without a control character on the terminal.
"""

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import World, world_in
from benchmarks.faults.outcomes import outcome
from vprompt.artifacts import artifact, whole
from vprompt.core import seals

_ESCAPE = "\x1b]0;mine\x07[/x]=1+1|`"
_ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    10**400,
    float("nan"),
    float("inf"),
    1e308,
    "",
    "\ud800",
    _ESCAPE,
    "x" * 100_000,
    [],
    {},
    [[[]]],
    {"a": {"b": []}},
    ["\ud800", 2**70, None],
)
_READING = (
    "pool ls POOL",
    "pool check POOL --model tiny",
    "pool show ARTEFACT",
    "predict task/test/red --artifact ARTEFACT -q",
    "evaluate task --artifact ARTEFACT -q",
    "report ARTEFACT --output it.html",
    "placement ARTEFACT",
    "lengths ARTEFACT",
    "score task --pool POOL -q",
    "combine task --pool POOL --include-self --epochs 0 --no-test -q",
)


def oddities(folder: Path, seed: int, count: int) -> Counter[str]:
    """Replace one value of an artefact in a pool of two, and read it with every command."""
    chance, world, found = random.Random(seed), world_in(folder), Counter[str]()
    pool = folder / "strangers"
    for number in range(count):
        shutil.rmtree(pool, ignore_errors=True)
        shutil.copytree(folder / "pool", pool)
        victim = pool / "source0"
        name = (artifact.CONFIG, artifact.RUN)[number % 2]
        value = json.loads((victim / name).read_text())
        value.pop(whole.DIGESTS, None)
        place = chance.choice(list(_places(value)))
        odd = chance.choice(_ODD)
        changed = _replaced(value, place, odd)
        (victim / name).write_text(json.dumps(changed))
        _seal(victim)
        words = _READING[number // 2 % len(_READING)]
        what = f"{words}, {name} {'.'.join(map(str, place))} = {str(odd)[:60]!r}"
        found[outcome(lambda: _reads(world, words, what))] += 1  # noqa: B023
    return found


def _reads(world: World, words: str, what: str) -> bool:
    """Run a command; say whether it keeps the terminal as it is."""
    place = {"POOL": "strangers", "ARTEFACT": "strangers/source0"}
    ended = world.run_words([place.get(word, word) for word in words.split()])
    if ended.crashed or ended.code not in (0, 1):
        raise RuntimeError(f"{what}: {ended.code}, {ended.said[-3000:]}")
    if ended.code == 1 and not ended.said.strip():
        raise RuntimeError(f"{what}: refused without a word")
    if "\x1b" in ended.said or "\x07" in ended.said:
        print(f"raw escape: {what}: {ended.said[-2000:]!r}", file=sys.stderr)
        return False
    return True


def _seal(folder: Path) -> None:
    """Write digests that fit, as who changes files on purpose can."""
    path = folder / artifact.CONFIG
    config = json.loads(path.read_text())
    if not isinstance(config, dict):
        return
    others = [name for name in (artifact.TENSORS, artifact.CARD, artifact.RUN)]
    digests = {name: seals.of_file(folder / name) for name in others if (folder / name).is_file()}
    path.write_text(json.dumps(whole.with_digests(config, digests)))


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, each in items:
        yield (*before, key)
        yield from _places(each, (*before, key))


def _replaced(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    if not place:
        return odd
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[place[0]] = _replaced(changed[place[0]], place[1:], odd)
    return changed
