"""Shelf: the artefacts of some pools as they are now, and the frozen backbone that they share.

A folder that changes is read again. Where it is broken, what was read before goes on, and that
is said.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.artifacts import artifact as artifacts
from vprompt.artifacts import catalogue, measured
from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.catalogue import Entry
from vprompt.artifacts.header import CONFIG, TENSORS
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.inference.serving import PromptServer
from vprompt.models.backbone import Backbone
from vprompt.opening import open_usual

Mark = tuple[tuple[int, int, int], ...]  # what of two files changes when they do


@dataclass(frozen=True, eq=False)
class Shelved:
    """An artefact that is served, and the mark of the files that it was read from."""

    artifact: Artifact
    mark: Mark


class Shelf:
    """Artefacts by folder name; `server` answers with those of the last `refresh`.

    `problems` holds, by name, why a folder is not served, or not in its newest state.
    """

    server: PromptServer

    def __init__(
        self,
        pools: Sequence[Path],
        *,
        model: str | Backbone | None = None,
        device: str = "auto",
        force: bool = False,
        say: Callable[[str], None] = lambda text: None,
        progress: Progress = SILENT,
    ) -> None:
        self.pools, self.force, self.say = list(pools), force, say
        self.problems: dict[str, str] = {}
        self.reloads = Counter[str]()
        self._tried: dict[str, Mark] = {}
        self._shelved: dict[str, Shelved] = {}
        self._busy = threading.Lock()
        entries = catalogue.entries(self.pools)
        self.backbone = _open_backbone(entries, model, device, progress)
        self._read(entries)
        if not self._shelved:
            first = next(iter(self.problems.items()), ("", "there is none"))
            raise VPromptError(
                f"The pool {catalogue.describe(self.pools)} holds no artefact to serve. "
                f"{first[0]}: {first[1]}"
            )
        self.server = self._server()

    def refresh(self) -> bool:
        """Look whether folders changed, read those that did, and say whether anything is new."""
        with self._busy:
            try:
                entries = catalogue.entries(self.pools)
            except (VPromptError, OSError) as error:
                self._complain("", str(error))
                return False
            self.problems.pop("", None)
            if not self._read(entries):
                return False
            self.server = self._server()
            return True

    def rows(self) -> list[dict[str, Any]]:
        """Return what a person wants to know of every artefact that is served, or cannot be."""
        shelved, listed = dict(self._shelved), []
        for name, each in sorted(shelved.items()):
            config = each.artifact.config
            listed.append(
                {
                    "name": name,
                    "task": config.get("task", {}).get("name", ""),
                    "classes": each.artifact.classes,
                    "tokens": sum(config["num_virtual_tokens"]),
                    "method": _method(config),
                    "move": catalogue.move_of(config),
                    "target": each.artifact.head.target,
                    "test_accuracy": (config.get("metrics") or {}).get("acc1"),
                    "measured": measured.short(config["metrics"]) if config.get("metrics") else "",
                    "backbone": config["base_model_name_or_path"],
                    "problem": self.problems.get(name, ""),
                }
            )
        lost = [name for name in self.problems if name not in shelved and name]
        return listed + [{"name": name, "problem": self.problems[name]} for name in sorted(lost)]

    def card(self, name: str) -> str | None:
        """Return an artefact's card, or None where it is not served."""
        found = self._shelved.get(name)
        return None if found is None else found.artifact.card

    def _server(self) -> PromptServer:
        chosen = {name: each.artifact for name, each in self._shelved.items()}
        return PromptServer(self.backbone, chosen, self.force, check=False)

    def _read(self, entries: Sequence[Entry]) -> bool:
        """Take in what is new or changed and let go of what is gone; say whether anything was."""
        changed = False
        for entry in entries:
            mark = _mark(entry.folder)
            if self._tried.get(entry.name) == mark:
                continue
            self._tried[entry.name] = mark
            again = entry.name in self._shelved
            try:
                if entry.problem:
                    raise VPromptError(entry.problem)
                loaded = artifacts.load(entry.folder)
                PromptServer(self.backbone, {entry.name: loaded}, self.force, check=False)
            except (VPromptError, OSError) as error:
                kept = " The one that was read before goes on." if again else ""
                self._complain(entry.name, f"{error}{kept}")
                continue
            self._shelved = {**self._shelved, entry.name: Shelved(loaded, mark)}
            self.problems.pop(entry.name, None)
            self._tell(entry.name, "read again" if again else "added")
            changed = True
        names = {entry.name for entry in entries}
        for name in [name for name in self._tried if name not in names]:
            del self._tried[name]
            self.problems.pop(name, None)
            if name in self._shelved:
                self._shelved = {k: v for k, v in self._shelved.items() if k != name}
                self._tell(name, "gone")
                changed = True
        return changed

    def _tell(self, name: str, what: str) -> None:
        if hasattr(self, "server"):  # not while the server starts
            self.reloads[what] += 1
            self.say(f"{name}: {what}")

    def _complain(self, name: str, problem: str) -> None:
        if self.problems.get(name) != problem:
            self.problems[name] = problem
            self.reloads["refused"] += 1
            self.say(f"{name}: {problem}" if name else problem)


def _open_backbone(
    entries: Sequence[Entry], model: str | Backbone | None, device: str, progress: Progress
) -> Backbone:
    """Return the backbone that most artefacts name, or the one given, at their image size."""
    configs = [entry.config for entry in entries if entry.config is not None]
    if not configs:
        problems = [entry.problem for entry in entries if entry.problem]
        raise VPromptError(" ".join(["There is no artefact to serve.", *problems[:1]]))
    return open_usual(configs, model, device=device, progress=progress)


def _method(config: dict[str, Any]) -> str:
    recipe = config.get("recipe") or {}
    return str(config.get("method") or recipe.get("method") or "")


def _mark(folder: Path) -> Mark:
    marks = []
    for name in (CONFIG, TENSORS):
        try:
            stat = (folder / name).stat()
            marks.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            marks.append((0, 0, 0))
    return tuple(marks)
