"""Hub: artefacts to and from a model hub, the only module that uses the network for them.

`hf-hub:user/name@revision` names an artefact on the Hugging Face Hub, at the root of a model
repository. Fetched are the four files of an artefact and nothing else; they are checked as any
stranger's folder and kept in the cache by commit, so what was fetched once needs no network.
"""

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vprompt.artifacts import artifact, cards, publishing, whole
from vprompt.artifacts.artifact import CARD, CONFIG, LARGEST_RUN, RUN, TENSORS
from vprompt.core import seals
from vprompt.core.errors import VPromptError
from vprompt.core.files import atomic_folder, cache_folder, damaged, json_text, optional
from vprompt.core.progress import SILENT, Progress

PREFIX = "hf-hub:"
FILES = (CONFIG, TENSORS, CARD, RUN)
LARGEST = {CONFIG: 2**22, TENSORS: 2**31, CARD: 2**22, RUN: LARGEST_RUN}  # bytes
_SPEC = re.compile(r"hf-hub:(\w[\w.-]*)/(\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
HOSTS = "VPROMPT_HUB_HOSTS"  # more hosts that a fetch may be sent on to, with commas between
_OWN = ("huggingface.co", "hf.co")  # whose files lie on several hosts of theirs
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
        snapshot = _fetch(spec, repo, revision, progress)
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
        CARD: cards.tagged(card, config).encode(),
        **({} if run is None else {RUN: _bytes_of(run)}),
    }
    if whole.DIGESTS in config:  # card, record and config are others now
        config = whole.with_digests(config, others)
    return Parcel(repo, {CONFIG: _bytes_of(config), **others}, tuple(notes))


def _bytes_of(value: dict[str, Any]) -> bytes:
    """Return what `files.write_json` would write."""
    return json_text(value).encode("utf-8", "backslashreplace")


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
    api = _api()
    with _explained(f"{folder} cannot be uploaded to {parcel.repo}"):
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
    with _explained("The hub cannot be searched"):
        models = list(_api().list_models(filter=filters, search=query, limit=limit))
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
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
        try:
            artifact.load(draft)
        except VPromptError as error:
            reason = str(error).replace(str(draft), spec)
            raise VPromptError(f"What was fetched is refused: {reason}") from None


def _fetch(spec: str, repo: str, revision: str | None, progress: Progress) -> Path:
    """Return the library's snapshot of the four files, its folder named by the commit."""
    from huggingface_hub.errors import HfHubHTTPError

    api, wanted = _api(), {"revision": revision, "allow_patterns": list(FILES)}
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # which HTTP library raises here depends on huggingface_hub's age
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403, 404):
            raise VPromptError(_refusal(spec, error)) from None
        try:
            snapshot = Path(api.snapshot_download(repo, local_files_only=True, **wanted))
        except Exception:
            raise VPromptError(
                f"{spec} cannot be fetched ({_short(error)}), and no copy of it is in the cache. "
                f"Fetch it once with a network: `vprompt share pull {spec}`."
            ) from None
        progress.say(f"the hub cannot be reached: used the copy of {spec} at {snapshot.name[:12]}")
        return snapshot
    sizes = {each.rfilename: each.size for each in info.siblings or ()}
    lacks = [name for name in (CONFIG, TENSORS) if name not in sizes]
    if lacks:
        raise VPromptError(f"{spec} holds no artefact: it lacks {' and '.join(lacks)}.")
    for name in FILES:
        size = sizes.get(name, 0)
        if size is None or size > LARGEST[name]:
            raise VPromptError(
                f"{spec}: {name} has {'an unknown number of' if size is None else size} bytes; no "
                "artefact's is so large."
            )
    with _explained(f"{spec} cannot be fetched"):
        _check_places(api, repo, info.sha or revision, [name for name in FILES if name in sizes])
        snapshot = Path(api.snapshot_download(repo, **wanted))
    if info.sha is not None and snapshot.name != info.sha:  # None: a hub that names no commit
        raise VPromptError(f"{spec} changed while it was fetched. Run the same command again.")
    for each in info.siblings or ():
        if each.rfilename in FILES:
            _check_arrived(spec, snapshot / each.rfilename, each)
    return snapshot


def _check_places(api: Any, repo: str, revision: str | None, names: Sequence[str]) -> None:
    """Refuse a hub that sends the fetch on to a host that does not belong to it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    home = urlsplit(str(api.endpoint)).hostname or ""
    trusted = {home, *os.environ.get(HOSTS, "").split(",")}
    if any(_belongs(home, known) for known in _OWN):
        trusted |= {*_OWN}
    for name in names:
        url = hf_hub_url(repo, name, revision=revision, endpoint=api.endpoint)
        place = urlsplit(get_hf_file_metadata(url, token=api.token).location).hostname or home
        if not any(known and _belongs(place, known) for known in trusted):
            raise VPromptError(
                f"{name} of {repo} is not on {home}: the hub sends on to {place}, which is "
                f"refused. If that host is right, allow it: {HOSTS}={place}"
            )


def _belongs(host: str, known: str) -> bool:
    return host == known or host.endswith(f".{known}")


def _check_arrived(spec: str, path: Path, told: Any) -> None:
    """Refuse a file that is not as long as the hub says, or of another digest."""
    if not path.is_file():
        raise VPromptError(f"{spec}: {path.name} did not arrive. Run the same command again.")
    digest = (told.lfs or {}).get("sha256") if isinstance(told.lfs, dict) else None
    digest = digest or getattr(told.lfs, "sha256", None)
    short = path.stat().st_size != told.size
    if short or (digest is not None and seals.of_file(path) != f"sha256:{digest}"):
        # What the library keeps is not fetched again as long as it is there.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise VPromptError(
            f"{spec}: {path.name} arrived damaged: {'cut short' if short else 'another digest'}. "
            "Run the same command again."
        )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the hub's library raises into one sentence, and show no bars for kilobytes."""
    from huggingface_hub import utils

    shown = not utils.are_progress_bars_disabled()
    if shown:
        utils.disable_progress_bars()
    try:
        yield
    except VPromptError:
        raise
    except Exception as error:
        raise VPromptError(_refusal(what, error)) from None
    finally:
        if shown:
            utils.enable_progress_bars()


def _refusal(what: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        reason = "you are not logged in, or not allowed to. Log in: `hf auth login`"
    elif status == 404:
        reason = "there is no such repository or revision, or it is private and you are not in it"
    else:
        reason = _short(error)
    return f"{what}: {reason}."


def _short(error: Exception) -> str:
    """Return an error's kind and its first line: libraries write pages."""
    first = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return f"{type(error).__name__}: {first}"


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


def _api() -> Any:
    from huggingface_hub import HfApi

    # Given here, since the library reads it once, when something else first imports it.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="vprompt")
