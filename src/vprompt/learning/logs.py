"""Logs: the curve of a training in files that other programs read; imports no torch.

Every training has a folder of its own. What stands there always follows its history: a training
that was continued adds what is missing, and one that begins afresh replaces what is there.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vprompt.core.errors import VPromptError
from vprompt.core.files import check_writable, write_json, write_text

KINDS = ("tensorboard", "csv", "jsonl")
FOLDER = Path("logs")
Row = dict[str, Any]  # what is known of an epoch, by name


def read_kinds(value: Any) -> tuple[str, ...]:
    """Return the kinds of log that a person asked for; raises VPromptError for another word."""
    words = value.split(",") if isinstance(value, str) else list(value)
    kinds = tuple(dict.fromkeys(str(word).strip() for word in words))
    for kind in kinds:
        if kind not in KINDS:
            raise VPromptError(f"--log is one of {', '.join(KINDS)}, but got {kind!r}.")
    return kinds


def check(kinds: Sequence[str], folder: Path | str | None) -> Path | None:
    """Return the folder of the logs, or None without any, before the work begins.

    Raises VPromptError where it cannot be written, or where a log needs what is not installed.
    """
    if not kinds:
        if folder is not None:
            raise VPromptError(
                f"--log-dir {folder} says where, but not what: add --log {KINDS[0]} "
                f"(or {', '.join(KINDS[1:])})."
            )
        return None
    place = FOLDER if folder is None else Path(folder).expanduser()
    if place.exists() and not place.is_dir():
        raise VPromptError(f"--log-dir {place} is a file; name a folder.")
    check_writable(place / "run", "--log-dir")
    if "tensorboard" in kinds and not _summary_modules():
        raise VPromptError(
            "--log tensorboard needs the package tensorboard (or tensorboardX), which is not "
            "installed: `pip install 'vprompt[tensorboard]'`, or use --log csv."
        )
    return place


def folder_name(*words: str) -> str:
    """Return the name of a run's folder: words without what file systems and shells mind."""
    return "-".join(re.sub(r"[^\w.=,-]+", "_", word)[:60].strip("_") for word in words if word)


@runtime_checkable
class Log(Protocol):
    """One kind of log of one training."""

    def begin(self, rows: Sequence[Row]) -> None:
        """Make the log hold exactly these epochs; rows that it has already stay as they are."""

    def add(self, row: Row) -> None:
        """Add an epoch, so that it can be read at once."""

    def close(self) -> None:
        """Let go of the files."""


def start(kinds: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Log]:
    """Return the logs of a training, and write its settings beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "settings.json", settings)
    made: dict[str, type[_Csv] | type[_Jsonl] | type[_Tensorboard]] = {
        "csv": _Csv,
        "jsonl": _Jsonl,
        "tensorboard": _Tensorboard,
    }
    return [made[kind](folder) for kind in kinds]


def now() -> str:
    """Return the time of day as a log says it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Csv:
    """`metrics.csv`: a column for each number."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.rows: list[Row] = []
        self.columns: list[str] = []

    def begin(self, rows: Sequence[Row]) -> None:
        """Write the rows anew, with what the file knew of them."""
        kept: dict[str, Row] = {}
        if self.path.exists():
            text = self.path.read_text("utf-8", "replace")
            whole = text[: text.rfind("\n") + 1]  # a line that was cut short is none
            for known in csv.DictReader(io.StringIO(whole)):
                kept.setdefault(known.get("epoch") or "", dict(known))
        self.rows = [kept.get(str(row["epoch"]), row) for row in rows]
        self._rewrite()

    def add(self, row: Row) -> None:
        """Append a line; a number that no line had before makes a new column."""
        self.rows.append(row)
        if set(row) - set(self.columns):
            self._rewrite()
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._text([row]))

    def close(self) -> None:
        """Nothing is held open."""

    def _rewrite(self) -> None:
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        write_text(self.path, ",".join(self.columns) + "\n" + self._text(self.rows))

    def _text(self, rows: Sequence[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


class _Jsonl:
    """`metrics.jsonl`: an object a line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def begin(self, rows: Sequence[Row]) -> None:
        """Write the rows anew, with what the file knew of them."""
        kept: dict[int, str] = {}
        lines = self.path.read_text("utf-8", "replace").split("\n") if self.path.exists() else [""]
        for line in lines[:-1]:
            try:
                kept.setdefault(json.loads(line)["epoch"], line)
            except (ValueError, LookupError, TypeError):
                continue
        written = [kept.get(row["epoch"], _json_line(row)) for row in rows]
        write_text(self.path, "".join(line + "\n" for line in written))

    def add(self, row: Row) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json_line(row) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


def _json_line(row: Row) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False)


def _summary_modules() -> list[str]:
    """Return the modules that can write TensorBoard's files, the best first."""
    found = {"torch.utils.tensorboard": "tensorboard", "tensorboardX": "tensorboardX"}
    return [module for module, needed in found.items() if find_spec(needed) is not None]


class _Tensorboard:
    """`events.out.tfevents.*`: a scalar for each number, by epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def begin(self, rows: Sequence[Row]) -> None:
        """Add what is missing; readers pass over what an earlier process wrote of later epochs.

        The last epoch is written again, since a process may have ended before it was.
        """
        from importlib import import_module

        known = any(self.folder.glob("events.out.tfevents.*"))
        first = len(rows) - 1 if known else 0
        module = import_module(_summary_modules()[0])
        purge = rows[first]["epoch"] if known else None
        self.writer = module.SummaryWriter(str(self.folder), purge_step=purge)
        for row in rows[first:]:
            self.add(row)

    def add(self, row: Row) -> None:
        """Write an epoch's numbers, and bring them to the disk."""
        for name, value in row.items():
            if name != "epoch" and isinstance(value, int | float):
                self.writer.add_scalar(_tag(name), value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


def _tag(name: str) -> str:
    """Return `val/loss` for `val_loss`, so that TensorBoard shows splits as groups."""
    split, _, rest = name.partition("_")
    return f"{split}/{rest}" if split in ("train", "val") and rest else name
