"""Pool: a folder of artefacts that others have learned; list, check and load them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from vprompt import artifact, hub
from vprompt.artifact import Artifact
from vprompt.backbone import Backbone
from vprompt.errors import VPromptError

Pool: TypeAlias = Path | str | Sequence[Path | str]


@dataclass(frozen=True)
class Entry:
    """One folder of a pool: its config, or the reason why it cannot be used."""

    folder: Path
    config: dict[str, Any] | None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


def entries(pool: Pool) -> list[Entry]:
    """Return every artefact folder of a pool, in name order; reads configs only.

    A pool is a folder that holds artefact folders, or several such folders and single artefacts,
    which may be `hf-hub:user/name`.
    """
    given = [pool] if isinstance(pool, Path | str) else list(pool)
    found = [_entry(folder) for each in given for folder in _folders(hub.folder_of(each))]
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
    return str(pool) if isinstance(pool, Path | str) else ", ".join(str(each) for each in pool)


def _folders(pool: Path) -> list[Path]:
    if not pool.is_dir():
        raise VPromptError(f"No pool at {pool}. Give a folder that holds artefact folders.")
    if (pool / artifact.CONFIG).is_file():
        return [pool]
    found = [f for f in sorted(pool.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    if not found:
        raise VPromptError(
            f"The pool {pool} holds no artefact folders. Learn one: `vprompt learn`."
        )
    return found


def rows(pool: Pool) -> list[dict[str, Any]]:
    """Return one plain row per artefact, for listing; a broken one has a `problem`."""
    listing = []
    for entry in entries(pool):
        config = entry.config or {}
        metrics = config.get("metrics") or {}
        accuracy = metrics.get("acc1")
        listing.append(
            {
                "name": entry.name,
                "task": config.get("task", {}).get("name", ""),
                "classes": config.get("num_classes", ""),
                "tokens": sum(config.get("num_virtual_tokens", [])),
                "backbone": config.get("base_model_name_or_path", ""),
                "test accuracy": "" if accuracy is None else f"{100 * accuracy:.1f} %",
                "problem": entry.problem or "",
            }
        )
    return listing


def check(pool: Pool, backbone: Backbone | None = None) -> list[Entry]:
    """Read every artefact whole and return the entries, each with its first problem if any."""
    checked = []
    for entry in entries(pool):
        problem = entry.problem
        if problem is None:
            try:
                loaded = artifact.load(entry.folder)
                if backbone is not None:
                    artifact.check_fits(loaded.config, backbone)
            except VPromptError as error:
                problem = str(error)
        checked.append(Entry(entry.folder, entry.config, problem))
    return checked


def load(
    pool: Pool, backbone: Backbone, *, exclude: tuple[str, ...] = (), force: bool = False
) -> list[Artifact]:
    """Return all prompts of a pool that fit the backbone; one that does not is an error.

    `exclude` leaves out sources by name, such as the target's own prompt.
    """
    found = entries(pool)
    names = [entry.name for entry in found]
    unknown = sorted(set(exclude) - set(names))
    if unknown:
        raise VPromptError(
            f"The pool {describe(pool)} holds no {unknown[0]!r}. It holds: {', '.join(names)}."
        )
    sources = [artifact.load(entry.folder) for entry in found if entry.name not in exclude]
    for source in sources:
        if not force:
            artifact.check_fits(source.config, backbone, what=f"The source {source.name!r}")
    sources = [source for source in sources if source.prompt is not None]
    if not sources:
        raise VPromptError(
            f"The pool {describe(pool)} holds no prompt to combine after leaving out {exclude}."
        )
    return sources


def _entry(folder: Path) -> Entry:
    try:
        return Entry(folder, artifact.read_config(folder))
    except VPromptError as error:
        return Entry(folder, None, str(error))
