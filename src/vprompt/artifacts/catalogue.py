"""Catalogue: what a pool holds, from headers alone: a thousand in a second, without torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from vprompt.artifacts import foreign, measured
from vprompt.artifacts.header import CONFIG, other_method, read_config
from vprompt.core import drafts
from vprompt.core.errors import VPromptError

STILL = 1e-3  # a move of less than this share of its start is rounding, not learning


@dataclass(frozen=True)
class Entry:
    """One folder of a pool: its config, or the reason why it cannot be used."""

    folder: Path
    config: dict[str, Any] | None
    problem: str | None = None
    start: str = ""  # how the start of its prompt is known, where that was looked at
    other: str = ""  # the kind of another program's adapter
    stray: bool = False  # neither file of an artefact is in it

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def promptless(self) -> str:
        """Why there is no image prompt in it; nothing where there is one, or where it is broken."""
        if self.other:
            return f"an adapter of the type {self.other}, which holds no prompt"
        if self.stray:
            return f"no artefact.{foreign.describe_folder(self.folder)}".rstrip(".")
        if self.config is None or sum(self.config["num_virtual_tokens"]):
            return ""
        method = self.config.get("method") or self.config.get("recipe", {}).get("method")
        return f"learned with {method}, without an image prompt" if method else "holds no prompt"


@dataclass(frozen=True)
class Listing:
    """A pool whose configs have been read: what it is called, and its folders in name order."""

    place: str
    entries: tuple[Entry, ...]


Pool: TypeAlias = Path | str | Sequence[Path | str] | Listing


def listing(pool: Pool) -> Listing:
    """Return a pool with its configs read, for those who would otherwise read them again."""
    return Listing(describe(pool), tuple(entries(pool)))


def entries(pool: Pool) -> list[Entry]:
    """Return every artefact folder of a pool, in name order; reads configs only.

    A pool is a folder that holds artefact folders, or several such folders and single artefacts,
    which may be `hf-hub:user/name`.
    """
    if isinstance(pool, Listing):
        return list(pool.entries)
    given = [pool] if isinstance(pool, Path | str) else list(pool)
    found = [_entry(folder) for each in given for folder in _folders(_on_disk(each))]
    known: dict[str, Path] = {}
    for entry in found:
        if entry.name in known:
            raise VPromptError(
                f"Two sources are called {entry.name!r}: {known[entry.name]} and {entry.folder}. "
                "Rename one of the folders."
            )
        known[entry.name] = entry.folder
    return sorted(found, key=lambda entry: entry.name)


def describe(pool: Pool) -> str:
    """Return a pool as a person would name it."""
    if isinstance(pool, Listing):
        return pool.place
    return str(pool) if isinstance(pool, Path | str) else ", ".join(str(each) for each in pool)


def _folders(pool: Path) -> list[Path]:
    if pool.is_file():
        raise VPromptError(foreign.describe_file(pool))
    if not pool.is_dir():
        raise VPromptError(f"No pool at {pool}. Give a folder that holds artefact folders.")
    if (pool / CONFIG).is_file():
        return [pool]
    drafts.sweep(pool)  # and what was displaced for good is back before it is listed
    with os.scandir(pool) as inside:
        names = [f.name for f in inside if f.is_dir() and not f.name.startswith(".")]
    found = [pool / name for name in sorted(names)]
    if not found:
        raise VPromptError(
            f"The pool {pool} holds no artefact folders. Learn one: `vprompt learn`."
        )
    return found


def rows(pool: Pool) -> list[dict[str, Any]]:
    """Return one plain row per artefact, for listing; a broken one has a `problem`."""
    found = []
    for entry in entries(pool):
        config = entry.config or {}
        metrics = config.get("metrics")
        found.append(
            {
                "name": entry.name,
                "task": config.get("task", {}).get("name", ""),
                "classes": config.get("num_classes", ""),
                "tokens": sum(config.get("num_virtual_tokens", [])),
                "move": move_of(config),
                "backbone": config.get("base_model_name_or_path", ""),
                "test accuracy": measured.short(metrics) if metrics else "",
                "problem": entry.problem or "",
            }
        )
    return found


def move_of(config: dict[str, Any]) -> str:
    """Return how far a prompt moved from its start, as its config records it; empty if it does not.

    A prompt that is its start carries nothing, and the word says so.
    """
    init = config.get("prompt_init")
    size = init.get("move") if isinstance(init, dict) else None
    if isinstance(size, bool) or not isinstance(size, int | float) or not size >= 0:
        return ""
    return f"{size:.2f}" if size >= STILL else "none: it is its start"


def _entry(folder: Path) -> Entry:
    try:
        return Entry(folder, read_config(folder))
    except VPromptError as error:
        stray = not any((folder / name).exists() for name in foreign.PARTS[:2])
        return Entry(folder, None, str(error), other=other_method(folder), stray=stray)


def _on_disk(place: Path | str) -> Path:
    if not str(place).startswith("hf-hub:"):
        return Path(place).expanduser()
    from vprompt.artifacts import hub  # needs torch, which a folder on this disk does not

    return hub.folder_of(place)
