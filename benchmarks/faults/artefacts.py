"""Artefacts: mutated files, kills while one is saved, and loads while it is replaced."""

import contextlib
import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.faults.children import Fault, in_child
from benchmarks.faults.outcomes import litter, outcome
from vprompt.artifacts import artifact
from vprompt.artifacts.artifact import CARD, CONFIG, RUN, TENSORS, Artifact, make_config
from vprompt.backbones import tiny
from vprompt.core import drafts
from vprompt.models.heads import Head
from vprompt.prompts.prompt import Prompt, place

CLASSES = ("cat", "dog", "owl")


def made(seed: int = 0) -> Artifact:
    """Return an artefact of random numbers, which nobody trained."""
    backbone, random_numbers = tiny.load(image_size=32), torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random_numbers)

    blocks = place(2, backbone.depth, deep=True)
    prompt = Prompt(draw(len(blocks), backbone.dim), blocks, False)
    head = Head(draw(3, backbone.feature_dim), draw(3))
    classes = CLASSES if seed % 2 == 0 else CLASSES[::-1]
    config = make_config(backbone, prompt, classes, task={"name": f"task{seed}"})
    return Artifact(prompt, head, draw(backbone.feature_dim), config, f"# Card {seed}\n")


def same(one: Artifact, other: Artifact) -> bool:
    """Say whether two artefacts predict the same, and say the same of themselves."""
    if one.prompt is None or other.prompt is None or one.card != other.card:
        return False
    pairs = [(one.prompt.tokens, other.prompt.tokens), (one.prompt.blocks, other.prompt.blocks)]
    pairs += [(one.head.weight, other.head.weight), (one.head.bias, other.head.bias)]
    pairs += [(one.task_embedding, other.task_embedding)]
    return one.config == other.config and all(torch.equal(a, b) for a, b in pairs)


def one_of(loaded: Artifact, allowed: tuple[Artifact, ...]) -> bool:
    """Say whether an artefact is one of those that may be there."""
    return any(same(loaded, each) for each in allowed)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with a bit, a few bytes or a page of them changed, cut, doubled or gone."""
    changed = bytearray(data)
    if not changed:
        return b"x"
    at = chance.randrange(len(changed) if chance.random() < 0.6 else min(400, len(changed)))
    kind = chance.choice(("bit", "bit", "bytes", "zeros", "cut", "empty", "insert", "repeat"))
    if kind == "bit":
        changed[at] ^= 1 << chance.randrange(8)
    elif kind == "bytes":
        changed[at : at + 8] = chance.randbytes(len(changed[at : at + 8]))
    elif kind == "zeros":
        changed[at : at + 4096] = bytes(len(changed[at : at + 4096]))
    elif kind == "cut":
        del changed[at:]
    elif kind == "empty":
        changed.clear()
    elif kind == "insert":
        changed[at:at] = chance.randbytes(3)
    else:
        changed += changed[at : at + 64]
    return bytes(changed)


def mutations(folder: Path, seed: int, count: int) -> Counter[str]:
    """Damage one file of an artefact, or take it from another artefact, and load."""
    chance, found = random.Random(seed), Counter[str]()
    truth, other, victim = folder / "truth", folder / "other", folder / "victim"
    artifact.save(made(0), truth, run={"tuning": {}, "n": [1, 2, 3]})
    artifact.save(made(1), other, run={"tuning": {}, "n": [4]})
    expected = artifact.load(truth)
    for number in range(count):
        shutil.copytree(truth, victim)
        name = (TENSORS, CONFIG, CARD, RUN)[number % 4]
        path, way = victim / name, chance.random()
        if way < 0.1:
            shutil.copyfile(other / name, path)
        elif way < 0.15:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes(), chance))
        unchanged = path.is_file() and path.read_bytes() == (truth / name).read_bytes()
        found[outcome(lambda: same(artifact.load(victim), expected) or unchanged)] += 1  # noqa: B023
        shutil.rmtree(victim)
    return found


def saves(folder: Path, seed: int, count: int | None) -> Counter[str]:
    """Kill a process at a change of a file while it saves, anew and over an artefact.

    Without a count at every change there is. After each, the next command has to find an artefact
    that is whole, the old or the new one, and to leave nothing of the dead process.
    """
    found, chance = Counter[str](), random.Random(seed)
    old, new, target = made(0), made(1), folder / "pool" / "it"

    def start(over: bool) -> None:
        shutil.rmtree(folder / "pool", ignore_errors=True)
        if over:
            artifact.save(old, target)

    for over in (False, True):
        start(over)
        changes = in_child(lambda: artifact.save(new, target, overwrite=True)).changes
        assert changes > 4
        points = list(range(changes))
        if count is not None:
            points = [chance.choice(points) for _ in range(count // 2 + (count % 2) * over)]
        for point in points:
            start(over)
            kill = Fault(signal.SIGKILL, change=point)
            ending = in_child(lambda: artifact.save(new, target, overwrite=True), kill)
            assert ending.code in (0, -signal.SIGKILL), ending  # 0: done before it came to that
            found[outcome(lambda: _whole_or_none(target, (old, new), over))] += 1  # noqa: B023
            found["litter"] += bool(litter([folder / "pool"]))
    return +found


def _whole_or_none(target: Path, allowed: tuple[Artifact, ...], must: bool) -> bool:
    drafts.sweep(target.parent)  # as every command does
    if not target.exists() and not must:
        return True
    return one_of(artifact.load(target), allowed)


def loads(folder: Path, seed: int, count: int) -> Counter[str]:
    """Load an artefact so often while another process replaces it all the time."""
    del seed
    found, target = Counter[str](), folder / "pool" / "it"
    one = made(0)
    other = replace(one, head=Head(-one.head.weight, -one.head.bias))
    other = replace(other, config={**one.config, "label_names": list(CLASSES[::-1])})
    artifact.save(one, target, overwrite=True)
    writer = os.fork()
    if writer == 0:
        with contextlib.suppress(BaseException):
            while os.getppid() > 1:
                for each in (other, one):
                    artifact.save(each, target, overwrite=True)
        os._exit(0)
    try:
        for _ in range(count):
            found[outcome(lambda: one_of(artifact.load(target), (one, other)))] += 1
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    # It is there all the time, so to say that it is not is wrong.
    found["wrong"] += found.pop("refused", 0)
    drafts.sweep(target.parent)
    found["litter"] += bool(litter([target.parent]))
    return +found
