"""Records: a folder of result files, some or all of which are packed into one compact file.

    FOLDER/NAME.json        a record of its own, as it was written when its run ended
    FOLDER.jsonl.xz         the packed ones: `{"name": NAME, "record": {...}}` a line, by name

Any reader of JSON lines reads the packed file, such as
`pandas.read_json("runs.jsonl.xz", lines=True)`, or `xzcat` before anything else. Where a record is
in both, the file of its own is the newer one and counts.
"""

import fnmatch
import functools
import json
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.core.files import (
    atomic_file,
    json_text,
    parse_json,
    read_json,
    write_json,
    write_text,
)

ENDING = ".jsonl.xz"
PRESET = 6 | lzma.PRESET_EXTREME  # a higher one takes 674 MB of memory and gains nothing here


@dataclass(frozen=True)
class Packing:
    """What was packed: how many records, their bytes before and now, and what stayed a file."""

    packed: Path
    records: int
    added: int
    bytes_before: int
    bytes_after: int
    left: tuple[str, ...] = ()


class Records:
    """Reads and writes the records of a folder by name; holds nothing that is not on disk."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.packed = self.folder.with_name(self.folder.name + ENDING)

    def names(self) -> list[str]:
        """Return the names of all records, in order."""
        # First the files: what is packed in between is found in the packed file then.
        own = {path.stem for path in self._files()}
        return sorted(own | self._lines().keys())

    def __contains__(self, name: str) -> bool:
        """Say whether there is a record of this name."""
        return self._path(name).is_file() or name in self._lines()

    def read(self, name: str) -> Any:
        """Return a record, from its own file or from the packed one."""
        path = self._path(name)
        try:
            return read_json(path)
        except VPromptError:
            if path.is_file() or (line := self._lines().get(name)) is None:
                raise
        return parse_json(line, f"{self.packed}, the record {name}")["record"]

    def find(self, pattern: str = "*") -> Iterator[tuple[str, Any]]:
        """Yield the records whose names match, such as `compare_*`, with their names, in order."""
        for name in self.names():
            if fnmatch.fnmatchcase(name, pattern):
                yield name, self.read(name)

    def write(self, name: str, record: Any) -> None:
        """Write a record as a file of its own, whole or not at all."""
        write_json(self._path(name), record)

    def remove(self, name: str) -> None:
        """Remove the file of a record, if there is one."""
        self._path(name).unlink(missing_ok=True)

    def pack(self) -> Packing:
        """Put all files into the packed file, compare, and remove those that are in it.

        The packed file is the same for the same records, byte for byte, and gives every file back
        byte for byte; one that it could not give back, such as one written by hand, stays a file.
        """
        with self._alone():
            files = {path.stem: path.read_bytes() for path in self._files()}
            added = {name: line for name, data in files.items() if (line := _line(name, data))}
            left = tuple(sorted(files.keys() - added.keys()))
            known = dict(self._lines())
            lines = {**known, **added}
            if not lines:
                raise VPromptError(
                    f"{self.folder} holds no .json file to pack. Name the --output of a `bench "
                    "run`, or a folder of result files."
                )
            if lines != known:
                with atomic_file(self.packed) as draft:
                    draft.write_bytes(_compressed(lines))
                    _compare(_lines_of(draft), lines, {name: files[name] for name in added})
            for name in added:
                if self._path(name).read_bytes() == files[name]:  # not written again since
                    self._path(name).unlink()
            _remove_if_empty(self.folder)
            before = sum(len(_text(name, line).encode()) for name, line in lines.items())
            after = self.packed.stat().st_size
        return Packing(self.packed, len(lines), len(added), before, after, left)

    def unpack(self) -> int:
        """Write every packed record as a file again, and remove the packed file; count them."""
        with self._alone():
            lines = self._lines()
            if not lines:
                raise VPromptError(f"There is no {self.packed} to unpack.")
            for name, line in lines.items():
                if not self._path(name).is_file():
                    write_text(self._path(name), _text(name, line))
            self.packed.unlink()
        return len(lines)

    def _files(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob("*.json")) if path.name[0] != "."]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _lines(self) -> Mapping[str, str]:
        try:
            found = self.packed.stat()
        except FileNotFoundError:
            return {}
        return _cached_lines(self.packed, (found.st_mtime_ns, found.st_size, found.st_ino))

    def _alone(self) -> Any:
        """Keep other processes from packing the same folder meanwhile."""
        from filelock import FileLock

        self.packed.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.packed.with_name(f".{self.packed.name}.lock"))


@functools.lru_cache(maxsize=4)
def _cached_lines(path: Path, stamp: tuple[int, ...]) -> Mapping[str, str]:
    del stamp  # another one is another file
    return _lines_of(path)


def _lines_of(path: Path) -> dict[str, str]:
    """Return the lines of a packed file, by the name of their record."""
    try:
        text = lzma.decompress(path.read_bytes()).decode("utf-8")
        return {str(json.loads(line)["name"]): line for line in text.splitlines()}
    except OSError as error:
        raise VPromptError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
        raise VPromptError(
            f"{path} is no packed file of records, or is damaged: {error}. Take a copy of it from "
            "where this one came from."
        ) from None


def _line(name: str, data: bytes) -> str | None:
    """Return a record as a line, or None where the line would not give its file back."""
    try:
        record = json.loads(data)
        line = json.dumps({"name": name, "record": record}, sort_keys=True, separators=(",", ":"))
        return line if _text(name, line).encode() == data else None
    except (ValueError, RecursionError):
        return None


def _text(name: str, line: str) -> str:
    """Return the text of the file that a line came from."""
    return json_text(parse_json(line, name)["record"])


def _compressed(lines: Mapping[str, str]) -> bytes:
    text = "".join(f"{lines[name]}\n" for name in sorted(lines))
    return lzma.compress(text.encode(), preset=PRESET)


def _compare(
    found: Mapping[str, str], lines: Mapping[str, str], files: Mapping[str, bytes]
) -> None:
    """Make sure that what was written is what was to be written, before any file goes."""
    same = found == lines and all(
        _text(name, found[name]).encode() == files[name] for name in found.keys() & files.keys()
    )
    if not same:
        raise VPromptError(
            "The packed file does not hold what its files hold, so nothing was packed. Check the "
            "disk, and that nothing writes to the folder, and pack it again."
        )


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
