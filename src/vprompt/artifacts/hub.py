"""Hub: artefacts to and from a model hub; this and `fetching` alone use the network for them.

`hf-hub:user/name@revision` names an artefact on the Hugging Face Hub, at the root of a model
repository. Fetched are the four files of an artefact and nothing else; they are checked as any
stranger's folder and kept in the cache by commit, so what was fetched once needs no network.
"""

import atexit
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.artifacts import artifact, cards, fetching, publishing, whole
from vprompt.artifacts.artifact import CARD, CONFIG, RUN, TENSORS
from vprompt.core.errors import VPromptError
from vprompt.core.files import (
    atomic_folder,
    cache_folder,
    damaged,
    optional,
    text_bytes,
)
from vprompt.core.progress import SILENT, Progress
from vprompt.core.wide import wide_json

PREFIX = "hf-hub:"
_SPEC = re.compile(r"hf-hub:(\w[\w.-]*)/(\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
_FOR_NOW: list[Path] = []  # where a process keeps what its cache could not, if there is such
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Found:
    """One repository that a search found; `artifact` is what `--artifact` and `--pool` take."""

    artifact: str
    backbone: str
    tags: tuple[str, ...]
    downloads: int
    updated: str


@dataclass(frozen=True)
class Parcel:
    """What is sent to a repository: every file's bytes by name, and what a person should know."""

    repo: str
    files: dict[str, bytes]
    notes: tuple[str, ...]


def is_hub(place: Path | str) -> bool:
    """Say whether a place names an artefact on a hub."""
    return str(place).startswith(PREFIX)


def folder_of(place: Path | str, *, progress: Progress = SILENT) -> Path:
    """Return the folder that a person names: one on this disk, or one that is pulled first."""
    return pull(str(place), progress=progress) if is_hub(place) else Path(place).expanduser()


def origin(folder: Path) -> str:
    """Return where a folder comes from: `hf-hub:user/name@commit` if pulled, else its own path."""
    for root in (_kept(), *_FOR_NOW):
        if Path(folder).is_relative_to(root):
            user, commit, name = Path(folder).relative_to(root).parts
            return f"{PREFIX}{user}/{name}@{commit}"
    return str(folder)


def pull(
    spec: str,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Return the folder of an artefact on the hub, fetched, checked and kept in the cache.

    `output` is a folder to copy it to, which is returned then. Without a network the copy that was
    fetched last is used, and `progress` says so. Raises VPromptError when there is none, when the
    repository holds no artefact or too large a file, and with the reason of `artifact.load` when
    it is not sound.
    """
    repo, revision = _parse(spec)
    if output is not None and overwrite:
        artifact.check_replaceable(output)
    commit = revision if revision and _COMMIT.fullmatch(revision) else None
    if commit is not None and os.path.isdir(_folder(repo, commit)):
        with optional():
            _drop_if_damaged(_folder(repo, commit))
    if commit is None or not os.path.isdir(_folder(repo, commit)):
        snapshot = fetching.fetch(spec, repo, revision, progress)
        commit = snapshot.name
        with optional():
            _drop_if_damaged(_folder(repo, commit))
        if not os.path.isdir(_folder(repo, commit)):
            with optional():
                _copy(snapshot, _folder(repo, commit), spec, overwrite=True)
        if not os.path.isdir(_folder(repo, commit)):
            _copy(snapshot, _below(_folder_for_now(), repo, commit), spec, overwrite=True)
    if output is None:
        return _folder(repo, commit)
    _copy(_folder(repo, commit), output, spec, overwrite=overwrite)
    return output


def pack(
    folder: Path | str, repo: str, *, title: str | None = None, keep_places: bool = False
) -> Parcel:
    """Return what `push` would send, byte by byte; nothing is sent and no network is used.

    Places of this disk are left out of config and record, and of the card unless it was edited, and
    the card tells where the artefact can be had. `title` names the task; `keep_places` changes
    nothing but the card's head.
    """
    folder, (repo, _) = Path(folder), _parse(f"{PREFIX}{repo.removeprefix(PREFIX)}")
    loaded = artifact.load(folder)
    run = artifact.read_run(folder) if (folder / RUN).is_file() else None
    config, card, notes = loaded.config, loaded.card, []
    if not keep_places:
        config, record = publishing.published(loaded.config, run, title=title)
        if run is not None and record is not None:
            try:
                own = card.strip() == cards.write(loaded.config, run).strip()
            except (LookupError, TypeError):  # a record of an older version lacks what cards say
                own = False
            if own:
                card = cards.render(config, record, place=f"{PREFIX}{repo}")
            else:
                notes.append("the card was edited, or is of another version: sent as it stands")
            run = record
        changed = loaded.config != config
        notes += ["places of this disk are left out (--keep-places sends them)"] * changed
    others = {
        TENSORS: (folder / TENSORS).read_bytes(),
        CARD: text_bytes(cards.tagged(card, config)),
        **({} if run is None else {RUN: _bytes_of(run)}),
    }
    if whole.DIGESTS in config:  # card, record and config are others now
        config = whole.with_digests(config, others)
    return Parcel(repo, {CONFIG: _bytes_of(config), **others}, tuple(notes))


def _bytes_of(value: dict[str, Any]) -> bytes:
    """Return what `artifact.save` would write."""
    return text_bytes(wide_json(value))


def push(
    folder: Path | str,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload a visual prompt",
    title: str | None = None,
    keep_places: bool = False,
) -> str:
    """Upload an artefact and return `hf-hub:user/name@commit`.

    It is checked first, as if a stranger had made it. The repository is made if it is not there,
    private unless told otherwise; `revision` is a branch. What is sent is what `pack` returns: the
    card has the tags by which `find` finds it, and the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd

    parcel = pack(folder, repo, title=title, keep_places=keep_places)
    operations = [CommitOperationAdd(name, data) for name, data in parcel.files.items()]
    api = fetching.api()
    with fetching.explained(f"{folder} cannot be uploaded to {parcel.repo}"):
        api.create_repo(parcel.repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(parcel.repo, branch=revision, exist_ok=True)
        commit = api.create_commit(
            parcel.repo, operations, commit_message=message, revision=revision
        )
    return f"{PREFIX}{parcel.repo}@{commit.oid}"


def find(query: str | None = None, *, backbone: str | None = None, limit: int = 50) -> list[Found]:
    """Return the repositories that hold artefacts, by a word in their name and by backbone.

    `backbone` is a name as artefacts give it, such as `vit_base_patch16_224.augreg_in21k`.
    """
    filters = ["vprompt", *([cards.backbone_tag(backbone)] if backbone else [])]
    with fetching.explained("The hub cannot be searched"):
        models = list(fetching.api().list_models(filter=filters, search=query, limit=limit))
    return [
        Found(
            f"{PREFIX}{model.id}",
            cards.backbone_of(model.tags or ()),
            tuple(model.tags or ()),
            model.downloads or 0,
            model.last_modified.date().isoformat() if model.last_modified else "",
        )
        for model in models
    ]


def _drop_if_damaged(folder: Path) -> None:
    """Remove a kept artefact that is not whole any more, so that it is fetched again."""
    if not os.path.isdir(folder):
        return
    try:
        artifact.check(folder)
    except VPromptError:
        damaged(folder)
        shutil.rmtree(folder)


def _copy(source: Path, target: Path, spec: str, *, overwrite: bool) -> None:
    """Copy the four files, links resolved: the library links into a store of its own."""
    with atomic_folder(target, overwrite=overwrite) as draft:
        for name in fetching.FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
        try:
            artifact.load(draft)
        except VPromptError as error:
            reason = str(error).replace(str(draft), spec)
            raise VPromptError(f"What was fetched is refused: {reason}") from None


def _parse(spec: str) -> tuple[str, str | None]:
    found = _SPEC.fullmatch(spec)
    if found is None or ".." in spec:
        raise VPromptError(
            f"An artefact on the hub is `hf-hub:user/name` or `hf-hub:user/name@revision`, but got "
            f"{spec!r}."
        )
    return f"{found[1]}/{found[2]}", found[3]


def _kept() -> Path:
    return cache_folder() / "hub"


def _folder_for_now() -> Path:
    """Return a folder for this process alone, where the cache cannot be written."""
    if not _FOR_NOW:
        _FOR_NOW.append(Path(tempfile.mkdtemp(prefix="vprompt.artifacts.hub.")))
        atexit.register(shutil.rmtree, _FOR_NOW[0], ignore_errors=True)
    return _FOR_NOW[0]


def _folder(repo: str, commit: str) -> Path:
    """Return where a commit of an artefact is kept, or would be."""
    places = [_below(root, repo, commit) for root in (_kept(), *_FOR_NOW)]
    return next((place for place in places if os.path.isdir(place)), places[0])


def _below(root: Path, repo: str, commit: str) -> Path:
    user, name = repo.split("/")
    return root / user / commit / name
