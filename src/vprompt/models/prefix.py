"""Prefix: what enters the first prompted block, computed once per image and kept on disk.

The blocks before it see no prompt and are frozen, so what leaves them is the same in every epoch
and for every prompt that starts as late. Files are memory-mapped, bounded together, and keyed by
content: weights, images, preprocessing, precision, block.
"""

import functools
import json
import math
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.core import distributed, files, seals
from vprompt.core.precision import autocast, resolve
from vprompt.core.progress import SILENT, Progress
from vprompt.core.types import Labels
from vprompt.data.task import Examples
from vprompt.models.backbone import Backbone, Entering, enter
from vprompt.prompts.prompt import Prompt

DEFAULT_LIMIT = 2.0  # GiB
_VERSION = "2"
_TOKENS, _INDEX = "tokens.bin", "index.json"


def first_block(prompts: Iterable[Prompt | None]) -> int:
    """Return the first block that any of the prompts enters; 0 where there is no prompt at all."""
    entered = [each.places[0] for each in prompts if each is not None and each.places]
    return min(entered, default=0)


def keep(
    backbone: Backbone,
    splits: Sequence[Examples | None],
    block: int,
    *,
    precision: str,
    limit: float = DEFAULT_LIMIT,
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> list[Examples | None]:
    """Return the splits such that their batches come as what enters `block`.

    It is computed when it is first asked for, and read from then on. `limit`, in GiB, bounds all
    that is kept; what was used longest ago makes room. Nothing changes where `block` or `limit` is
    0, and where a split has no room its images come as pixels; so they do where several processes
    train one prompt, each of which would compute all of it.
    """
    if block == 0 or limit <= 0 or distributed.size() > 1:
        return list(splits)
    shelf = _Shelf(backbone, block, precision, batch_size, limit, progress)
    return [
        each and PrefixExamples(each.pixels, each.labels, each.digest, shelf) for each in splits
    ]


def reuse(
    backbone: Backbone, examples: Examples, prompt: Prompt | None, precision: str
) -> Examples:
    """Return the examples as `keep` does, if their prefix is on the disk; nothing is written."""
    block = first_block([prompt])
    [found] = keep(backbone, [examples], block, precision=precision)
    assert found is not None
    there = isinstance(found, PrefixExamples) and found.shelf.read(found.shelf.folder(examples))
    return examples if not there else found


@dataclass(frozen=True, eq=False)
class PrefixExamples(Examples):
    """A split whose batches come as what enters a block, where the shelf has room for it."""

    shelf: "_Shelf"

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Any, Labels]]:
        """Yield `(entering, labels)` in the given order, or pixels where nothing is kept."""
        if self._kept is None:
            yield from super().batches(size, order)
            return
        for rows in self.parts(size, order):
            yield Entering(self._kept[rows], self.shelf.block), self.labels[rows]

    @functools.cached_property
    def _kept(self) -> Tensor | None:
        return self.shelf.tokens(Examples(self.pixels, self.labels, self.digest))


class _Shelf:
    """The files of this cache, as one run with one backbone, block and precision uses them."""

    def __init__(
        self,
        backbone: Backbone,
        block: int,
        precision: str,
        batch_size: int,
        limit: float,
        progress: Progress,
    ) -> None:
        self.backbone, self.block, self.batch_size = backbone, block, batch_size
        self.precision, self.progress = resolve(precision, backbone.device), progress
        self.limit = limit * 2**30
        self.mine: set[Path] = set()  # what this run uses does not make room for the rest of it

    def folder(self, examples: Examples) -> Path:
        """Return where the prefix of a split is kept."""
        config = json.dumps(self.backbone.data_config.to_json(), sort_keys=True)
        parts = [_VERSION, examples.digest, self.backbone.fingerprint, config]
        key = files.digest(*parts, self.precision, str(self.block), str(self.backbone.device.type))
        return _root() / key[:32]

    def tokens(self, examples: Examples) -> Tensor | None:
        """Return `[images, sequence, dim]` from the disk, computed first where it is not there."""
        folder = self.folder(examples)
        if not self.read(folder) and not self._write(folder, examples):
            return None
        self.mine.add(folder)
        files.touch(folder / _INDEX)
        return self._map(folder)

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Return what the index says, or None where files are missing or not as written."""
        if not (folder / _INDEX).exists():
            return None
        try:
            index = files.read_json(folder / _INDEX)
            size = math.prod(index["shape"]) * getattr(torch, index["dtype"]).itemsize
            stat = (folder / _TOKENS).stat()
            state = (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)
            if not seals.is_whole(index) or stat.st_size != size:
                raise ValueError("another size or index than was written")
            if _checksum(folder / _TOKENS, state) != index["checksum"]:
                raise ValueError("other tokens than were written")
            return dict(index)
        except Exception:  # a damaged index may hold anything
            if (folder / _INDEX).exists():  # else another process made room in between
                files.damaged(folder)
            return None

    def _map(self, folder: Path) -> Tensor | None:
        index = self.read(folder)
        if index is None:  # another process made room in between
            return None
        size, kind = math.prod(index["shape"]), getattr(torch, index["dtype"])
        mapped = torch.from_file(str(folder / _TOKENS), shared=False, size=size, dtype=kind)
        return mapped.view(index["shape"])

    def _write(self, folder: Path, examples: Examples) -> bool:
        """Compute and write a split's prefix in one pass, unless there is no room."""
        _, first = next(self._parts(examples, 1))
        size = len(examples) * first.nbytes
        room = None
        with files.optional():
            room = self._make_room(size)
        if room is None:
            return False
        if not room:
            self.progress.say(
                f"no prefix cache: {len(examples)} images need {size / 2**30:.1f} GiB; see "
                "--prefix-cache"
            )
            return False
        written = False
        with files.optional():
            with (
                self.progress.step("prefix", len(examples)) as step,
                files.atomic_folder(folder, overwrite=True) as draft,
            ):
                total = 0
                with (draft / _TOKENS).open("wb") as file:
                    for count, part in self._parts(examples, self.batch_size):
                        data = part.view(torch.uint8).numpy().data
                        total = zlib.crc32(data, total)
                        file.write(data)
                        step.advance(count)
                shape = [len(examples), *first.shape[1:]]
                kind = str(first.dtype).removeprefix("torch.")
                index = {"shape": shape, "dtype": kind, "checksum": total}
                files.write_json(draft / _INDEX, seals.seal(index))
            written = True
        return written

    @torch.no_grad()
    def _parts(self, examples: Examples, size: int) -> Iterator[tuple[int, Tensor]]:
        for pixels, _ in examples.batches(size):
            images = self.backbone.normalise(pixels.to(self.backbone.device))
            with autocast(self.precision, self.backbone.device):
                tokens = enter(self.backbone, images, self.block).tokens
            yield len(pixels), tokens.contiguous().cpu()

    def _make_room(self, size: int) -> bool:
        """Remove what was used longest ago until `size` bytes fit; say whether they do."""
        root = _root()
        root.mkdir(parents=True, exist_ok=True)
        held = {path: _bytes(path) for path in root.iterdir() if path.is_dir()}
        own = sum(held.get(path, 0) for path in self.mine)
        if own + size > self.limit or size > shutil.disk_usage(root).free // 2:
            return False
        total = sum(held.values())
        for path in sorted(held.keys() - self.mine, key=_last_use):
            if total + size <= self.limit:
                break
            shutil.rmtree(path, ignore_errors=True)
            total -= held[path]
        return True


def _root() -> Path:
    return files.cache_folder() / "prefix"


@functools.lru_cache(maxsize=64)
def _checksum(path: Path, state: tuple[int, ...]) -> int:
    """Return the CRC-32 of a file, asked once in a process while the file is as it was.

    It is of gigabytes, so that a digest that also keeps off forgers would take too long.
    """
    del state
    total = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            total = zlib.crc32(part, total)
    return total


def _bytes(folder: Path) -> int:
    try:
        return (folder / _TOKENS).stat().st_size
    except OSError:
        return 0


def _last_use(folder: Path) -> float:
    try:
        return (folder / _INDEX).stat().st_mtime
    except OSError:
        return 0.0
