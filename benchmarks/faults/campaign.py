"""Campaign: damage, kills and races against everything that is kept on disk, with counts.

Every trial ends in one of four ways: `same` (the right result), `refused` (a sentence), `wrong`
(another result, nothing said) or `traceback`. The last two are what must not happen, nor `litter`.

    python -m benchmarks faults.campaign --seed 1
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vprompt.artifacts import artifact
from vprompt.artifacts.artifact import CARD, CONFIG, RUN, TENSORS, Artifact, make_config
from vprompt.backbones import tiny
from vprompt.core import drafts, seals, shelves
from vprompt.core.errors import VPromptError
from vprompt.data import images
from vprompt.data.task import Examples, Task
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import tune
from vprompt.models import features, prefix
from vprompt.models.heads import Head
from vprompt.pooling import evidence
from vprompt.pooling.mix import Plan
from vprompt.prompts.prompt import Prompt, place

BAD = ("wrong", "traceback", "litter")
CLASSES = ("cat", "dog", "owl")
_EVENTS = ("os.rename", "vprompt.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "os.utime")


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
        found[_outcome(lambda: same(artifact.load(victim), expected) or unchanged)] += 1  # noqa: B023
        shutil.rmtree(victim)
    return found


def _outcome(trial: Callable[[], bool]) -> str:
    try:
        return "same" if trial() else "wrong"
    except VPromptError as error:
        return "refused" if len(str(error)) > 20 else "traceback"
    except Exception as error:
        print(f"traceback: {type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"


class Cached:
    """Something of every kind in the cache, and how it is read again."""

    def __init__(self, folder: Path) -> None:
        self.backbone = tiny.load(image_size=32)
        draw = np.random.default_rng(0)
        pictures = folder / "pictures"
        pictures.mkdir(parents=True)
        self.paths = tuple(pictures / f"{number}.png" for number in range(12))
        for path in self.paths:
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        self.labels = tuple(number % 2 for number in range(len(self.paths)))
        late = torch.full((2,), 4)
        self.prompt = Prompt(torch.ones(2, self.backbone.dim), late, False)

    def examples(self) -> Examples:
        """Return the pictures, decoded, from the cache where it holds them."""
        from vprompt.data.task import Split

        split = Split("train", self.paths, self.labels)
        task = Task("pictures", ("a", "b"), split)
        return task.examples(split, self.backbone.data_config)

    def everything(self) -> list[torch.Tensor]:
        """Return what comes of images, features, gradients, prefixes and an interrupted run."""
        images._is_sound.cache_clear()
        prefix._checksum.cache_clear()
        seals._TOLD.clear()
        examples = self.examples()
        plan = Plan("base")
        gathered = evidence.gather(
            self.backbone, {"it": self.prompt}, examples, 2, plan, precision="fp32"
        )
        plain = features.features_of(self.backbone, None, examples, precision="fp32")
        config = TrainConfig(epochs=2, batch_size=6, precision="fp32", head="zero")
        tuned = tune(
            PromptAdapter(self.backbone, self.prompt),
            examples,
            None,
            2,
            config,
            checkpoint=shelves.cache_folder() / "checkpoints",
        )
        prompt = tuned.adapter.prompt()
        assert prompt is not None
        pixels = torch.from_numpy(np.array(examples.pixels))
        return [pixels, gathered.features, gathered.gradients, plain, prompt.tokens]


def damages(folder: Path, seed: int, count: int) -> Counter[str]:
    """Damage one file of the cache, of every kind in turn, and compute everything again."""
    chance, found = random.Random(seed), Counter[str]()
    cached = Cached(folder)
    with _cache(folder / "cache"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = cached.everything()
        shutil.copytree(folder / "cache", folder / "whole")
        names = sorted(p.relative_to(folder / "whole") for p in (folder / "whole").rglob("*"))
        names = [name for name in names if (folder / "whole" / name).is_file()]
        kinds = {name.parts[0] for name in names}
        assert kinds >= {"images", "evidence", "prefix", "checkpoints"}, kinds
        for number in range(count):
            shutil.rmtree(folder / "cache")
            shutil.copytree(folder / "whole", folder / "cache")
            path = folder / "cache" / names[number % len(names)]
            path.write_bytes(damage(path.read_bytes(), chance))
            found[_outcome(lambda: all(map(torch.equal, cached.everything(), truth)))] += 1
    return found


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("VPROMPT_CACHE")
    os.environ["VPROMPT_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["VPROMPT_CACHE"]
        else:
            os.environ["VPROMPT_CACHE"] = before


def in_child(work: Callable[[], None], kill_at: int | None = None) -> tuple[int, int]:
    """Run in a forked process that dies at the n-th change of a file.

    Returns its exit code, negative for a signal, and how many changes there were.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event not in _EVENTS or (event == "open" and not _writes(arguments)):
                return
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        try:
            sys.addaudithook(watch)
            work()
            os.write(writer, str(count).encode())
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(text or 0)


def _writes(arguments: tuple[object, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(sign in mode for sign in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def kills(folder: Path, count: int | None = None, *, seed: int = 0) -> Counter[str]:
    """Kill a process at every change of a file while it saves, anew and over an artefact.

    With `count`, at so many of them, chosen by `seed`. After each, the next command has to find an
    artefact that is whole, the old or the new one, and to leave nothing of the dead process.
    """
    found, chance = Counter[str](), random.Random(seed)
    old, new, target = made(0), made(1), folder / "pool" / "it"

    def start(over: bool) -> None:
        shutil.rmtree(folder / "pool", ignore_errors=True)
        if over:
            artifact.save(old, target)

    for over in (False, True):
        start(over)
        _, changes = in_child(lambda: artifact.save(new, target, overwrite=True))
        assert changes > 4
        points = list(range(changes))
        if count is not None:
            points = [chance.choice(points) for _ in range(count // 2)]
        for point in points:
            start(over)
            code, _ = in_child(lambda: artifact.save(new, target, overwrite=True), point)
            assert code in (0, -signal.SIGKILL), code  # 0: done before it came to that
            found[_outcome(lambda: _whole_or_none(target, (old, new), over))] += 1  # noqa: B023
            drafts.sweep(target.parent)
            if target.parent.exists() and {p.name for p in target.parent.iterdir()} - {"it"}:
                found["litter"] += 1
    return found


def _whole_or_none(target: Path, allowed: tuple[Artifact, ...], must: bool) -> bool:
    drafts.sweep(target.parent)  # as every command does
    if not target.exists() and not must:
        return True
    return _one_of(artifact.load(target), allowed)


def loads(folder: Path, count: int) -> Counter[str]:
    """Load an artefact so often while another process replaces it all the time."""
    found, target = Counter[str](), folder / "pool" / "it"
    one = made(0)
    other = replace(one, head=Head(-one.head.weight, -one.head.bias))
    other = replace(other, config={**one.config, "label_names": list(CLASSES[::-1])})
    artifact.save(one, target)
    writer = os.fork()
    if writer == 0:
        with contextlib.suppress(BaseException):
            while os.getppid() > 1:
                for each in (other, one):
                    artifact.save(each, target, overwrite=True)
        os._exit(0)
    try:
        for _ in range(count):
            found[_outcome(lambda: _one_of(artifact.load(target), (one, other)))] += 1
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    found["refused, although it is there"] = found.pop("refused", 0)
    return +found


def _one_of(loaded: Artifact, allowed: tuple[Artifact, ...]) -> bool:
    return any(same(loaded, each) for each in allowed)


def main() -> None:
    """Run all of it and print a table of counts; exit 1 on anything that must not happen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--kills", type=int, default=250)
    parser.add_argument("--loads", type=int, default=2000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="vprompt-faults."))
    rows: dict[str, Counter[str]] = {}
    try:
        with _cache(scratch / "cache"):
            for name, run in (
                ("mutations", lambda: mutations(scratch / "m", asked.seed, asked.mutations)),
                ("damages", lambda: damages(scratch / "d", asked.seed, asked.damages)),
                ("kills", lambda: kills(scratch / "k", asked.kills, seed=asked.seed)),
                ("loads", lambda: loads(scratch / "l", asked.loads)),
            ):
                begun = time.perf_counter()
                rows[name] = run()
                print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    heads = sorted({key for row in rows.values() for key in row} | set(BAD))
    print(f"| seed {asked.seed} | trials | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 2) + "|")
    for name, row in rows.items():
        cells = [str(row[head]) for head in heads]
        print(f"| {name} | {sum(row.values())} | " + " | ".join(cells) + " |")
    if any(row[bad] for row in rows.values() for bad in BAD):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
