"""Memory: what `predict` takes for many images, `pool check` for artefacts made to harm; digests.

Each command is a process of its own, and its peak is what the system says of it at its end. What
the digests of the cache cost is the share of their time in a `combine` that finds everything.

    python -m benchmarks faults.memory
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import RESULTS, ROOT, new_parser
from vprompt.core.files import write_json

RESULT = RESULTS / "faults" / "memory.json"
COUNTS = (500, 5000)
_GIB = 2**30


def main() -> None:
    """Measure, write `results/faults/memory.json` and print the tables."""
    parser = new_parser(__doc__)
    parts = {"predict": _predictions, "pool check": _checks, "digests": _digests}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), metavar="PART")
    asked = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="vprompt-memory."))
    os.environ["VPROMPT_CACHE"] = str(scratch / "cache")
    try:
        _learn(scratch)
        found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        found["machine"] = {"processor": platform.machine(), "system": platform.system()}
        found |= {name: parts[name](scratch) for name in asked.parts}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(RESULT, found)
    print(table(found))


def peak(*words: object) -> dict[str, Any]:
    """Run a command of vprompt; return its peak memory in MB, seconds, exit code and last line."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "vprompt", *map(str, words)]
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdout=told, stderr=told)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        said = told.read().decode(errors="replace").strip().splitlines() or [""]
    return {
        "peak_mb": round(used.ru_maxrss / 1024, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "code": process.returncode,
        "said": said[-1][-200:].replace(tempfile.gettempdir(), ""),
    }


def _learn(scratch: Path) -> None:
    """Learn the artefact that everything is measured with."""
    words = ("--model", "tiny", "--img-size", "96", "--epochs", "1", "--shots", "5", "-q")
    done = peak("learn", "digits", *words, "--no-test", "--output", scratch / "pool" / "it")
    assert done["code"] == 0, done


def _predictions(scratch: Path) -> list[dict[str, Any]]:
    """Return the peak of `predict` for few and many images, decoded anew and decoded before."""
    rows = []
    for kind, make in (("PNG of 8 x 8", _small), ("JPEG of 0.1 to 1.5 megapixels", _large)):
        make(scratch / kind)
        for count in COUNTS:
            folder = scratch / f"{kind}, {count}"
            _link(scratch / kind, folder, count)
            for when in ("decoded anew", "decoded before"):
                output = ("-q", "--output", scratch / "labels.csv")
                made = scratch / "pool" / "it"
                ended = peak("predict", folder, "--artifact", made, *output)
                assert ended["code"] == 0, ended
                rows.append({"images": kind, "count": count, "when": when, **ended})
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _small(folder: Path) -> None:
    draw = np.random.default_rng(0)
    folder.mkdir()
    for number in range(200):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def _large(folder: Path) -> None:
    """Write photographs of many sizes: blocks of many sizes are what breaks a heap into pieces."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        width, height = int(draw.integers(400, 1400)), int(draw.integers(300, 1100))
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(folder / f"{number}.jpg", quality=80)


def _link(source: Path, folder: Path, count: int) -> None:
    """Make a folder of so many images: links to few files are as many files for a cache."""
    files = sorted(source.iterdir())
    folder.mkdir()
    for number in range(count):
        path = files[number % len(files)]
        os.link(path, folder / f"{number:05d}{path.suffix}")


def _checks(scratch: Path) -> list[dict[str, Any]]:
    """Return the peak of `pool check` on a sound artefact, and on what would fill the memory."""
    rows = []
    for name, harm in HARMS.items():
        shutil.rmtree(scratch / "checked", ignore_errors=True)
        shutil.copytree(scratch / "pool", scratch / "checked")
        harm(scratch / "checked" / "it")
        rows.append({"artefact": name, **peak("pool", "check", scratch / "checked")})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _digests(scratch: Path) -> dict[str, Any]:
    """Return what part of a `combine` that finds everything in the cache its digests take."""
    from vprompt import combine
    from vprompt.core import seals
    from vprompt.data import pixel_files
    from vprompt.models import prefix

    spent, inside = 0.0, False

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal spent, inside
            if inside:
                return call(*arguments, **named)
            began, inside = time.perf_counter(), True
            try:
                return call(*arguments, **named)
            finally:
                spent, inside = spent + time.perf_counter() - began, False

        return run

    names = {seals: ("of_bytes", "of_file", "is_whole", "whole_tensors", "seal_tensors")}
    names |= {pixel_files: ("digest_of_file", "digest_of_array"), prefix: ("_checksum",)}
    for module, own in names.items():
        for name in own:
            setattr(module, name, timed(getattr(module, name)))
    settings = {"pool": ROOT.parent / "pools" / "demo", "method": "hgprompt", "shots": 10}
    combine("digits", test=False, **settings)
    spent, began = 0.0, time.perf_counter()
    combine("digits", test=False, **settings)
    whole = time.perf_counter() - began
    found = {"seconds": round(whole, 2), "of digests": round(spent, 4), "share": spent / whole}
    print(found, file=sys.stderr, flush=True)
    return found


def _sparse(name: str, size: int) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return harm


def _tensor(key: str, kind: str, width: int, numbers: int) -> Callable[[Path], None]:
    """Return what puts a file of one tensor in place, of zeros that take no room on the disk."""

    def harm(folder: Path) -> None:
        entry = {"dtype": kind, "shape": [numbers], "data_offsets": [0, width * numbers]}
        head = json.dumps({key: entry}).encode()
        head += b" " * (-len(head) % 8)
        with (folder / "adapter_model.safetensors").open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + width * numbers)

    return harm


def _long_header(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write((3 * _GIB).to_bytes(8, "little"))
        file.truncate(3 * _GIB + 8)


def _wide_head(folder: Path) -> None:
    """Let the config announce a head of two gigabytes, and put it there."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    classes, width = 8000, 2**16
    config |= {"num_classes": classes, "feature_dim": width}
    config |= {"label_names": [str(number) for number in range(classes)]}
    config.pop("digests", None)
    path.write_text(json.dumps(config))
    at, entries = 0, {}
    counts = config["num_virtual_tokens"]
    shapes = {"head.weight": [classes, width], "head.bias": [classes], "task_embedding": [width]}
    for block, count in enumerate(counts):
        if count:
            shapes[f"prompt_embeddings.{block}"] = [count, config["token_dim"]]
    for key, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        entries[key] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + at)


HARMS: dict[str, Callable[[Path], None]] = {
    "as it was learned": lambda folder: None,
    "a tensor of 2 GB that nothing announces": _tensor("head.weight", "F16", 2, 2**30 - 4096),
    "state of 2 GB": _tensor("adapter.weight", "F16", 2, 2**30 - 4096),
    "a tensor of 5 GB": _tensor("head.weight", "F32", 4, 5 * _GIB // 4),
    "a head of 1 GB that its config announces": _wide_head,
    "a header of 3 GB": _long_header,
    "a card of 3 GB": _sparse("README.md", 3 * _GIB),
    "a run.json of 3 GB": _sparse("run.json", 3 * _GIB),
    "a config of 3 GB": _sparse("adapter_config.json", 3 * _GIB),
}


def table(found: dict[str, Any]) -> str:
    """Return what was measured in Markdown."""
    lines = []
    if "predict" in found:
        lines = ["| `predict`, tiny model at 96 px | images | | peak, MB |", "|---|---|---|---|"]
    for row in found.get("predict", ()):
        cells = (row["images"], f"{row['count']:,}", row["when"], f"{row['peak_mb']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    if "pool check" in found:
        lines += ["", "| `pool check` of | peak, MB | exit code |", "|---|---|---|"]
    for row in found.get("pool check", ()):
        lines.append(f"| {row['artefact']} | {row['peak_mb']:.0f} | {row['code']} |")
    if "digests" in found:
        share, seconds = found["digests"]["share"], found["digests"]["seconds"]
        lines += ["", f"Digests take {100 * share:.2f} % of the {seconds:.1f} s of a `combine` on "]
        lines[-1] += "the demonstration's pool that finds everything in the cache."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
