"""Lists: files that name images, with labels, splits or artefacts, read by one reader.

Read are tables (.csv, .tsv, whatever stands between their cells), JSON Lines, JSON, and text with a
path and perhaps a label in every line. Paths may be written as on Windows.
"""

import csv
import io
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest
from vprompt.data import finding
from vprompt.data.finding import is_image, suffixes

NAMES = {
    "image": (
        *("image", "path", "filename", "impath", "file_name", "filepath", "file_path", "file"),
        *("image_path", "image_file", "image_name", "img", "img_path", "imagepath", "imagefile"),
        *("image_id", "img_id", "id"),
    ),
    "label": ("label", "class", "target", "label_name", "class_name", "category", "classname"),
    "split": ("split", "subset", "fold", "partition", "set"),
    "artifact": ("artifact", "artefact"),
}
SPLITS = {**finding.SPLITS, "train800": "train", "val200": "val"}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".lst")
_DELIMITED = {".csv": ",", ".tsv": "\t"}
_TEXT = (".txt", ".lst")
_MARKS = (",", ";", "\t", "|")
_LARGEST = 2**30  # bytes


@dataclass(frozen=True)
class Row:
    """One image: where it stands in the file, and its cells by column."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """A list as it was read: its file, its columns in their order, and its rows."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def column(self, role: str, wanted: str | None = None) -> str | None:
        """Return the column of a role, by any of the names it goes by, or the one that is wanted.

        Names stand in for one another only where none is wanted: a mistyped one must not lead to
        other labels.
        """
        if wanted is not None:
            return wanted if wanted in self.columns else None
        plain = {_plain(name): name for name in reversed(self.columns)}
        return next((plain[name] for name in NAMES[role] if name in plain), None)

    def needed(self, role: str, wanted: str | None = None) -> str:
        """Return the column of a role; raises VPromptError with the columns there are."""
        found = self.column(role, wanted)
        if found is not None:
            return found
        name = wanted or role
        raise VPromptError(
            f"{self.file} has no column {name!r} for the {role}.{suggest(name, self.columns)} Name "
            f"the right one: `table(file='{self.file}', {role}_column=...)`."
        )

    def cell(self, row: Row, column: str) -> Any:
        """Return a cell; raises VPromptError where it is empty."""
        value = row.values.get(column)
        value = value.strip() if isinstance(value, str) else value
        if value is None or value == "":
            raise VPromptError(f"{self.file}, {row.place}: the column {column!r} is empty.")
        return value

    def images(self, column: str, folder: Path | None = None) -> list[Path]:
        """Return the image file of every row; raises VPromptError that names those without one.

        Paths are relative to `folder`, or else to the list's own.
        """
        root = self.file.parent if folder is None else folder
        found: list[Path] = []
        missing: list[tuple[Row, str]] = []
        for row in self.rows:
            name = str(self.cell(row, column))
            path = locate(root, name)
            found.append(path or root / name)
            if path is None:
                missing.append((row, name))
        if missing:
            row, name = missing[0]
            more = f" So it is with {len(missing)} of {len(self.rows)}." if missing[1:] else ""
            raise VPromptError(
                f"{self.file}, {row.place}: no image file at {root / name}."
                f"{_hint(root, name)}{more} Paths are relative to {root}; name another folder with "
                f"`table(file='{self.file}', root=...)`."
            )
        return found


def is_list(path: Path) -> bool:
    """Say whether a file's name is that of a list."""
    return path.suffix.lower() in SUFFIXES


def read(file: Path) -> Listing:
    """Read a list of any form; raises VPromptError with the line that cannot be read."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise VPromptError(
            f"Cannot tell how to read {file}: its name should end in one of {', '.join(SUFFIXES)}."
        )
    if not file.is_file():
        raise VPromptError(f"No file at {file}.")
    text = _text(file)
    if suffix in (".jsonl", ".ndjson"):
        rows = list(_json_lines(file, text))
    elif suffix == ".json":
        rows = list(_json(file, text))
    elif suffix in _TEXT and not _has_header(text):
        rows = list(_lines(text))
    else:
        rows = list(_delimited(file, text, _DELIMITED.get(suffix, ",")))
    if not rows:
        raise VPromptError(f"{file} lists no images.")
    columns = tuple(dict.fromkeys(str(key) for row in rows for key in row.values))
    return Listing(file, columns, tuple(rows))


def locate(folder: Path, name: str) -> Path | None:
    """Return the file of a name in a list, or None: as written, or in another spelling of the same.

    `\\` is a step of the path where it is no letter of a name, a letter with an accent may be one
    sign or two, and a name may lack its suffix.
    """
    slashed = name.replace("\\", "/")
    spelled = [name, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    spelled += [each.lstrip("/") for each in spelled if each.startswith("/")]
    if not is_image(name):
        spelled += [each + suffix for each in dict.fromkeys(spelled) for suffix in suffixes()]
    for each in dict.fromkeys(spelled):
        path = folder / os.path.expanduser(each)
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # longer than a file system's names, or with a zero byte
            continue
    return None


def _hint(folder: Path, name: str) -> str:
    """Say what is near a path that leads to no file."""
    slashed = name.replace("\\", "/")
    if re.match(r"[A-Za-z]:/", slashed):
        return " It is a place on a computer with Windows: write paths relative to the list."
    wanted = folder / slashed
    try:
        near = [path.name for path in wanted.parent.iterdir() if _alike(path.name, wanted.name)]
        below = [each for each in sorted(folder.iterdir()) if each.is_dir() and locate(each, name)]
    except OSError:
        return ""
    if near:
        return f" There is {near[0]!r}: small and large letters differ."
    return f" There is one in {below[0]}." if below else ""


def _alike(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _text(file: Path) -> str:
    """Return the text of a file, UTF-8 or what a mark at its beginning says."""
    if file.stat().st_size > _LARGEST:
        raise VPromptError(f"{file} is larger than 1 GiB: that is no list of images.")
    data = file.read_bytes()
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise VPromptError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from None


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _is_known(name: str) -> bool:
    return any(_plain(name) in names for names in NAMES.values())


def _has_header(text: str) -> bool:
    """Say whether a text begins as a table does, with a column for images."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    cells = re.split(r"[,;\t|]", first)
    return bool(_separator(first)) or any(_plain(cell) in NAMES["image"] for cell in cells)


def _separator(line: str) -> str | None:
    """Return what a line `sep=;` says, as spreadsheets write it."""
    found = re.fullmatch(r'"?sep=(.)"?', line.strip("\r\n"), re.IGNORECASE)
    return found[1] if found else None


def _delimited(file: Path, text: str, usual: str) -> Iterator[Row]:
    """Read a table, whatever stands between its cells; without a header, path, label, split."""
    told = _separator(text.split("\n", 1)[0])
    body = text.partition("\n")[2] if told else text
    reader = csv.reader(
        io.StringIO(body, newline=""), delimiter=told or _mark(body, usual), strict=True
    )
    ahead = 1 if told else 0
    try:
        header: list[str] = []
        while not any(header):
            header = [name.strip() for name in next(reader)]
        first = [(reader.line_num + ahead, header)]
        if len(set(header)) < len(header):
            raise VPromptError(f"{file}, line 1: two columns have the same name: {header}.")
        if is_image(header[0]) and not any(map(_is_known, header)):
            header = ["image", "label", "split"][: len(header)]
        else:
            first = []
        rest = ((reader.line_num + ahead, cells) for cells in reader)
        for line, cells in itertools.chain(first, rest):
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise VPromptError(
                    f"{file}, line {line}: expected {len(header)} cells ({', '.join(header)}), got "
                    f"{len(cells)}: {cells}."
                )
            yield Row(f"line {line}", dict(zip(header, cells, strict=True)))
    except StopIteration:
        return
    except csv.Error as error:
        raise VPromptError(f"{file}, line {reader.line_num + ahead}: {error}.") from None


def _mark(text: str, usual: str) -> str:
    """Return what stands between the cells of the header: where it has known names, or most."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    marks = dict.fromkeys((usual, *_MARKS))
    cells = {mark: [cell.strip(' "') for cell in first.split(mark)] for mark in marks}
    known = [mark for mark in marks if any(map(_is_known, cells[mark]))]
    # A single column, `image`, is known whatever stands between cells.
    return max(known or marks, key=lambda mark: len(cells[mark]))


def _lines(text: str) -> Iterator[Row]:
    """Read `path` or `path label` a line; both may hold spaces where a suffix ends the path."""
    ends = "|".join(re.escape(suffix) for suffix in suffixes())
    pattern = re.compile(rf"(.+(?:{ends}))(?:\s*[,;|\t]\s*|\s+)(.+)", re.IGNORECASE)
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip().strip('"')
        if not line or line.startswith("# "):
            continue
        place, found = f"line {number}", pattern.fullmatch(line)
        if found is not None:
            yield Row(place, {"image": found[1].strip('" '), "label": found[2].strip('" ')})
        elif is_image(line) or not re.search(r"\s", line):
            yield Row(place, {"image": line})
        else:
            image, label = line.rsplit(None, 1)
            yield Row(place, {"image": image, "label": label})


def _json_lines(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise VPromptError(f"{file}, {place}: not valid JSON: {error}.") from None
        if not isinstance(values, dict):
            raise VPromptError(
                f"{file}, {place}: expected an object such as "
                f'{{"image": "a.png", "label": "cat"}}, got {line.strip()[:60]!r}.'
            )
        yield Row(place, values)


def _json(file: Path, text: str) -> Iterator[Row]:
    """Read `{path: label}`, a list of objects or of `[path, label, name]`, or those by split."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VPromptError(f"{file} is not valid JSON: {error}.") from None
    if isinstance(found, dict) and found and {_plain(key) for key in found} <= SPLITS.keys():
        for word, part in found.items():
            for row in _json_rows(file, part, f"{word}, "):
                yield Row(row.place, {**row.values, "split": word})
        return
    yield from _json_rows(file, found, "")


def _json_rows(file: Path, found: Any, where: str) -> Iterator[Row]:
    if isinstance(found, dict):
        if not all(isinstance(label, str | int | float) for label in found.values()):
            raise VPromptError(
                f"{file} is no list of images: it has the keys {', '.join(map(repr, found))[:80]}. "
                'Expected {"a.png": "cat"}, or [{"image": "a.png", "label": "cat"}], or one of '
                "these for each of train, val and test."
            )
        found = [[path, label] for path, label in found.items()]
    for number, entry in enumerate(found if isinstance(found, list) else [found], 1):
        place = f"{where}entry {number}"
        if isinstance(entry, dict):
            yield Row(place, entry)
        elif isinstance(entry, str):
            yield Row(place, {"image": entry})
        elif isinstance(entry, list) and 2 <= len(entry) <= 3 and isinstance(entry[0], str):
            yield Row(place, {"image": entry[0], "label": entry[-1]})
        else:
            raise VPromptError(
                f"{file}, {place}: expected an image and its label, as in "
                f'{{"a.png": "cat"}} or [{{"image": "a.png", "label": "cat"}}], got '
                f"{json.dumps(entry)[:60]}."
            )
