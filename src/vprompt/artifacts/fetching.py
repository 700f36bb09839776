"""Fetching: the files of an artefact from a hub, whole and from where they belong, or refused."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vprompt.artifacts.artifact import CARD, CONFIG, LARGEST_RUN, RUN, TENSORS
from vprompt.core import seals
from vprompt.core.errors import VPromptError
from vprompt.core.progress import Progress

FILES = (CONFIG, TENSORS, CARD, RUN)
LARGEST = {CONFIG: 2**22, TENSORS: 2**31, CARD: 2**22, RUN: LARGEST_RUN}  # bytes
HOSTS = "VPROMPT_HUB_HOSTS"  # more hosts that a fetch may be sent on to, with commas between
_OWN = ("huggingface.co", "hf.co")  # whose files lie on several hosts of theirs


def fetch(spec: str, repo: str, revision: str | None, progress: Progress) -> Path:
    """Return the library's snapshot of the four files, its folder named by the commit."""
    from huggingface_hub.errors import HfHubHTTPError

    hub, wanted = api(), {"revision": revision, "allow_patterns": list(FILES)}
    try:
        info = hub.model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # which HTTP library raises here depends on huggingface_hub's age
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403, 404):
            raise VPromptError(_refusal(spec, error)) from None
        try:
            snapshot = Path(hub.snapshot_download(repo, local_files_only=True, **wanted))
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
    with explained(f"{spec} cannot be fetched"):
        _check_places(hub, repo, info.sha or revision, [name for name in FILES if name in sizes])
        snapshot = Path(hub.snapshot_download(repo, **wanted))
    if info.sha is not None and snapshot.name != info.sha:  # None: a hub that names no commit
        raise VPromptError(f"{spec} changed while it was fetched. Run the same command again.")
    for each in info.siblings or ():
        if each.rfilename in FILES:
            _check_arrived(spec, snapshot / each.rfilename, each)
    return snapshot


def _check_places(hub: Any, repo: str, revision: str | None, names: Sequence[str]) -> None:
    """Refuse a hub that sends the fetch on to a host that does not belong to it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    home = urlsplit(str(hub.endpoint)).hostname or ""
    trusted = {home, *os.environ.get(HOSTS, "").split(",")}
    if any(_belongs(home, known) for known in _OWN):
        trusted |= {*_OWN}
    for name in names:
        url = hf_hub_url(repo, name, revision=revision, endpoint=hub.endpoint)
        place = urlsplit(get_hf_file_metadata(url, token=hub.token).location).hostname or home
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
    short = path.stat().st_size != told.size
    if short or not _is_as_told(path, told):
        # What the library keeps is not fetched again as long as it is there.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise VPromptError(
            f"{spec}: {path.name} arrived damaged: {'cut short' if short else 'another digest'}. "
            "Run the same command again."
        )


def _is_as_told(path: Path, told: Any) -> bool:
    """Compare with the digest that the hub gives: of large files SHA-256, else the one of git."""
    large = told.lfs.get("sha256") if isinstance(told.lfs, dict) else None
    large = large or getattr(told.lfs, "sha256", None)
    if large is not None:
        return seals.of_file(path) == f"sha256:{large}"
    if told.lfs is not None or told.blob_id is None:
        return True
    head = b"blob %d\x00" % path.stat().st_size
    return bool(hashlib.sha1(head + path.read_bytes()).hexdigest() == told.blob_id)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
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


def api() -> Any:
    """Return the hub's client; nothing is asked yet."""
    from huggingface_hub import HfApi

    # Given here, since the library reads it once, when something else first imports it.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="vprompt")
