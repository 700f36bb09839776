"""Commands: whole commands that are killed, signalled or given a full disk, and run again.

Whatever happened to the first, the same command run again gives the bits of one that nothing
happened to, and the next leaves nothing of either. Batches are even, since the attention of a
model as small as this rounds differently for an odd number of images (docs/concepts.md), and
whether features come out of the cache decides how many there are.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

import vprompt
from benchmarks.faults.children import NONE, Ending, Fault, cache, drawn, full, in_child
from benchmarks.faults.outcomes import litter, outcome
from vprompt.artifacts import artifact
from vprompt.cli import terminal
from vprompt.core import drafts

COMMANDS = ("learn", "pro_vpt", "search", "combine", "bench", "predict")
_CLASSES = ("red", "green", "blue")
_QUICK = ("--model", "tiny", "--precision", "fp32", "-q")
_KILLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_SIZES = (0, 300, 1000, 3000, 10_000, 30_000)  # bytes that a file may have


def warm() -> None:
    """Import what commands import, so that a forked one begins at once."""
    from vprompt.backbones import tiny
    from vprompt.results import runs

    for found in pkgutil.walk_packages(vprompt.__path__, "vprompt."):
        if "web" not in found.name and "__main__" not in found.name:
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)
    tiny.load(image_size=32)
    runs._code_digest()  # of the files as they are now, whatever becomes of them meanwhile


@dataclass
class World:
    """A folder with a task, a pool and a recipe, in which commands are run."""

    folder: Path
    truths: dict[str, dict[str, Any]] = field(default_factory=dict)
    lives: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Where results go."""
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        """Where the cache is."""
        return self.folder / "cache"

    def build(self) -> None:
        """Make images and recipe, learn the pool, and run every command once undisturbed."""
        draw = np.random.default_rng(0)
        for split, count in (("train", 8), ("val", 4), ("test", 6)):
            for label, name in enumerate(_CLASSES):
                place = self.folder / "task" / split / name
                place.mkdir(parents=True)
                for number in range(count):
                    shades = draw.normal(90, 60, (16, 16, 3))
                    shades[..., label] += 60
                    pixels = np.clip(shades, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(place / f"{number}.png")
        recipe = {
            "name": "small",
            "backbone": {"model": "tiny", "image_size": 32},
            "seeds": [0],
            "train": {"epochs": 1, "precision": "fp32"},
            "tasks": [{"name": "task", "shots": 4}],
            "methods": [
                {"name": "Linear", "learn": "linear"},
                {"name": "VPT", "learn": "vpt(num_virtual_tokens=1)"},
            ],
        }
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        self.out.mkdir()
        pooled = {"combine", "predict"} & {*COMMANDS}
        for seed in (0, 1) if pooled else ():
            words = ("--prompt-length", "2", "--epochs", "1", "--seed", str(seed), "--keep", "last")
            place = self.folder / "pool" / f"source{seed}"
            ended = self.run_words(
                ["learn", "task", *_QUICK, *words, "--no-test", "--output", str(place)]
            )
            assert ended.code == 0, ended.said
        for name in COMMANDS:
            self.clear()
            ended = self.run(name)
            assert ended.code == 0 and not ended.crashed, ended.said
            self.truths[name] = self.result(name)
            self.lives[name] = ended.seconds, ended.changes
        self.clear()

    def clear(self) -> None:
        """Forget results and cache."""
        for place in (self.out, self.cache):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()

    def words(self, name: str) -> list[str]:
        """Return a command's words."""
        task = "task --model tiny --precision fp32 -q"
        learn = f"learn {task} --epochs 3 --batch-size 8"
        words = {
            "learn": f"{learn} --prompt-length 2",
            "pro_vpt": f"{learn} --method pro_vpt(num_virtual_tokens=2)",
            "search": f"search {task} --epochs 2 --search-epochs 2 --max-prompts 6",
            "combine": f"combine {task} --pool pool --include-self --method hgprompt(bootstrap=0) "
            "--form sum --epochs 2",
            "bench": "bench run recipe.yaml --data . -q",
            "predict": "predict task/test --artifact pool/source0 --precision fp32 -q",
        }[name]
        place = self.out / ("it.csv" if name == "predict" else "it")
        return [*words.split(), "--output", str(place)]

    def run(self, name: str, fault: Fault = NONE, *more: str) -> Ending:
        """Run a command, to which the fault happens."""
        return self.run_words([*self.words(name), *more], fault)

    def run_words(self, words: list[str], fault: Fault = NONE) -> Ending:
        """Run a command of these words in this folder."""

        def work() -> None:
            from vprompt import cli

            os.chdir(self.folder)
            os.environ["VPROMPT_CACHE"] = str(self.cache)
            sys.argv = ["vprompt", *words]
            cli.main()

        return in_child(work, fault, below=self.folder)

    def look(self) -> None:
        """Do what every command does at its beginning, as `vprompt pool ls` here would."""
        with cache(self.cache):
            terminal.tidy_cache()
        drafts.sweep(self.out)

    def result(self, name: str) -> dict[str, Any]:
        """Return what a command made, without times; raises VPromptError where it is not whole."""
        place = self.out / "it"
        if name == "predict":
            return {"predictions": place.with_suffix(".csv").read_text()}
        if name == "bench":
            runs = sorted((place / "runs").glob("[!.]*.json"))
            return {path.stem: _timeless(json.loads(path.read_text())) for path in runs}
        found = artifact.load(place)
        tensors = (place / artifact.TENSORS).read_bytes().hex()
        run = _timeless(artifact.read_run(place))
        return {"tensors": tensors, "config": found.config, "run": run}

    def is_right(self, name: str) -> bool:
        """Say whether a command made what it makes undisturbed, and show what differs."""
        found, truth = self.result(name), self.truths[name]
        if found != truth:
            told = [f"{where}: {one} against {other}" for where, one, other in _apart(found, truth)]
            print(f"{name} made something else: {'; '.join(told)[:2000]}", file=sys.stderr)
        return found == truth

    def is_there(self, name: str) -> bool:
        """Say whether a command has left something under the name of its result."""
        place = self.out / "it"
        return (place.with_suffix(".csv") if name == "predict" else place).exists()


def _timeless(value: Any) -> Any:
    """Return a record without what is another each time."""
    if isinstance(value, dict):
        left_out = ("seconds", "total_seconds", "created_at", "size_of_cache")
        return {key: _timeless(each) for key, each in value.items() if key not in left_out}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _apart(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two records differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _apart(one.get(key), other.get(key), f"{where}.{key}")
    elif one != other:
        yield where, one, other


def kills(folder: Path, seed: int, count: int) -> Counter[str]:
    """Kill or signal whole commands, some of them twice, and run them again."""
    chance, world, found = random.Random(seed), world_in(folder), Counter[str]()
    for number in range(count):
        name = COMMANDS[number % len(COMMANDS)]
        world.clear()
        faults = [drawn(chance, *world.lives[name])]
        if chance.random() < 0.3:
            faults.append(drawn(chance, *world.lives[name]))
        found[outcome(lambda: _survives(world, name, faults, found))] += 1  # noqa: B023
        found["litter"] += _leaves(world, name)
    return +found


def full_disks(folder: Path, seed: int, count: int) -> Counter[str]:
    """Let the disk refuse whole commands something, and run them again with room."""
    chance, world, found = random.Random(seed), world_in(folder), Counter[str]()
    for number in range(count):
        name = COMMANDS[number % len(COMMANDS)]
        world.clear()
        fault = full(chance, world.lives[name][1], _SIZES)
        found[outcome(lambda: _survives(world, name, [fault], found))] += 1  # noqa: B023
        found["litter"] += _leaves(world, name)
    return +found


def small_disks(folder: Path, seed: int, count: int) -> Counter[str]:
    """Run commands with their results and their cache on a disk of few kilobytes."""
    chance, world, found = random.Random(seed), world_in(folder), Counter[str]()
    for number in range(count):
        name = COMMANDS[number % len(COMMANDS)]
        world.clear()
        with _disk(chance.choice((world.out, world.cache)), chance.randrange(8, 400)) as there:
            if not there:
                return found
            first = world.run(name)
            whole = not first.code and world.is_right(name)
            told = first.code == 1 and "No space left" in first.said
            found["traceback"] += first.crashed
            found["wrong"] += not first.code and not whole
            found["said nothing"] += bool(first.code) and not told and not first.crashed
        world.clear()
        found[outcome(lambda: _survives(world, name, [], found))] += 1  # noqa: B023
        found["litter"] += _leaves(world, name)
    return +found


def _survives(world: World, name: str, faults: list[Fault], counts: Counter[str]) -> bool:
    """Run a command under each fault, and then undisturbed; say whether its result is right.

    `hit` counts the faults that ended a command, which might have been over before.
    """
    for fault in faults:
        ended = world.run(name, fault)
        counts["hit"] += int(ended.code != 0)
        if ended.crashed:
            raise RuntimeError(f"{name}, {fault}: {ended.said[-2000:]}")
        if name == "bench" and (broken := _broken_runs(world)):
            raise RuntimeError(f"{name}, {fault}: {broken}")
        soft = fault.signal in _KILLED[1:] and ended.code == 128 + fault.signal
        refused = ended.code == 1 and fault.signal and not world.is_there(name)
        if refused or (soft and "again to continue" not in ended.said):
            raise RuntimeError(f"{name}, {fault}: nothing said: {ended.said[-2000:]}")
        if world.is_there(name) and name != "bench" and not world.is_right(name):
            return False
    finished = world.is_there(name) and name not in ("bench", "predict")
    ended = world.run(name, NONE, *(["--retry-failed"] if name == "bench" else []))
    if ended.crashed:
        raise RuntimeError(f"{name} again after {faults}: {ended.said[-2000:]}")
    # One that had just finished when it was killed is refused: its result is there.
    if bool(ended.code) != finished:
        raise RuntimeError(f"{name} again after {faults}: {ended.code}, {ended.said[-2000:]}")
    return world.is_right(name)


def _broken_runs(world: World) -> str:
    """Return the traceback of a run of a benchmark that failed with one, or nothing."""
    for path in (world.out / "it" / "failed").glob("[!.]*.json"):
        if told := json.loads(path.read_text()).get("traceback"):
            return str(told)[-2000:]
    return ""


def _leaves(world: World, name: str) -> bool:
    """Say whether anything of dead processes, or the state of a finished run, is left."""
    world.look()
    left = litter([world.out, world.cache])
    left += (world.cache / "checkpoints").glob("*")
    if left:
        print(
            f"litter of {name}: {[str(p.relative_to(world.folder)) for p in left]}", file=sys.stderr
        )
    return bool(left)


_WORLDS: dict[Path, World] = {}


def world_in(folder: Path) -> World:
    """Return the world in a folder, built when it is first asked for."""
    if folder not in _WORLDS:
        warm()
        world = World(folder)
        folder.mkdir(parents=True)
        world.build()
        _WORLDS[folder] = world
    return _WORLDS[folder]


@contextlib.contextmanager
def _disk(place: Path, kilobytes: int) -> Iterator[bool]:
    """Put a disk of so many kilobytes in a folder's place; False where one may not."""
    options = f"size={kilobytes}k"
    words = ["mount", "-t", "tmpfs", "-o", options, "faults", str(place)]
    try:
        done = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", str(place)], check=True)
