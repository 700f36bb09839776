"""Files: everything that touches the disk and must never leave half a result behind."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vprompt.core import drafts, seals
from vprompt.core.errors import CacheWarning, VPromptError
from vprompt.core.swap import rename_new, swap

_ATTEMPTS = 100  # of replacing what others replace, too
_MANY = 32  # files that are brought to the disk one by one
_TOLD: set[tuple[Path, str]] = set()  # what a person was told of in this process


def cache_folder() -> Path:
    """Return where decoded images and evidence are kept: `$VPROMPT_CACHE`, or the user's cache."""
    if chosen := os.environ.get("VPROMPT_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("vprompt"))


def check_free(place: Path | str | None, *, overwrite: bool = False) -> None:
    """Raise VPromptError where a result would replace something; looks at nothing else."""
    # Not `Path.exists`, which raises where a name is too long.
    if place is not None and not overwrite and os.path.exists(Path(place).expanduser()):
        raise VPromptError(
            f"{place} exists already. Choose another --output, or add --overwrite to replace it."
        )


@contextlib.contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends, and vanishes if it fails.

    A folder of that name stays as it is until the new one is complete. Without `overwrite`, one
    that appeared meanwhile is another's result: it stays, and this one is refused.
    """
    target = Path(target)
    with _disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        drafts.sweep(target.parent)
        _check_free(target, overwrite)
        draft = drafts.folder(target)
    try:
        with _disk_errors_explained(target):
            yield draft.path
            draft.path.chmod(0o755)
            _put(draft.path, target, overwrite)
    finally:
        draft.discard()


@contextlib.contextmanager
def resumable_folder(target: Path, identity: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder that becomes `target` when the block ends; if it fails, the folder is kept.

    The next try finds it as it was, so that finished files need not be written again, unless it
    was begun for another `identity`: then it is thrown away.
    """
    target = Path(target)
    _check_free(target, overwrite)
    draft = target.parent / f".{target.name}.partial"
    mark = ".identity"
    with _disk_errors_explained(target):
        drafts.sweep(target.parent)
        if not (draft / mark).is_file() or (draft / mark).read_text("utf-8") != identity:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            write_text(draft / mark, identity)
        yield draft
        drafts.sweep(draft)
        (draft / mark).unlink(missing_ok=True)
        _put(draft, target, overwrite)
        shutil.rmtree(draft, ignore_errors=True)  # what was there before


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder; it is renamed to `target` when the block ends."""
    target = Path(target)
    with _disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        drafts.sweep(target.parent, once=True)
        draft = drafts.file(target)
    try:
        with _disk_errors_explained(target):
            yield draft.path
            draft.path.chmod(0o644)
            if _is_for_good(target):
                _sync(draft.path)
            os.replace(draft.path, target)
            if _is_for_good(target):
                _sync(target.parent)
    finally:
        draft.discard()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder, for what memory should not hold; it vanishes after.

    It lies in the cache, or where that cannot be written in the system's folder for such files.
    """
    with _disk_errors_explained(cache_folder()):
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            made = drafts.folder(cache_folder() / "scratch")
        except OSError:
            made = drafts.folder(Path(tempfile.gettempdir()) / "vprompt")
        try:
            yield made.path
        finally:
            made.discard()


def check_writable(target: Path, what: str) -> None:
    """Raise VPromptError unless a file or folder could be made at that place; nothing is left.

    `what` names the option, so that a run refuses before its work what would fail after it.
    """
    target = Path(target)
    try:
        place = target.parent
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # a name that is too long
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is not a folder")
        drafts.file(place / "probe").discard()
    except OSError as error:
        raise VPromptError(
            f"{what} {target} cannot be written: {error.strerror or error}. Nothing was begun; "
            "choose another place."
        ) from error


@contextlib.contextmanager
def optional() -> Iterator[None]:
    """Let go of what the block writes into the cache if the disk does not take it.

    The cache is there for speed, so that a run goes on without it; a `CacheWarning` says so, once.
    """
    try:
        yield
    except (OSError, VPromptError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        _warn_of_cache(_reason(cause))


def _warn_of_cache(reason: str) -> None:
    folder = cache_folder()
    if (folder, reason) not in _TOLD:
        _TOLD.add((folder, reason))
        warnings.warn(
            f"The cache {folder} cannot be written ({reason}), so what is computed is not kept for "
            "the next run. Set VPROMPT_CACHE to a folder that can be written.",
            CacheWarning,
            stacklevel=2,
        )


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(target) as draft:
        draft.write_bytes(text_bytes(text))


def text_bytes(text: str) -> bytes:
    """Return a text as a file holds it.

    A lone surrogate, as in a file name that is not UTF-8, is written as its escape.
    """
    return text.encode("utf-8", "backslashreplace")


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted; NaN is refused because JSON has none."""
    write_text(target, json_text(value))


def json_text(value: Any) -> str:
    """Return the text of a JSON file as `write_json` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_tensors(
    target: Path, tensors: Mapping[str, Any], text: Mapping[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file, atomically; `text` becomes its metadata."""
    # The bytes are written here: safetensors' own errors would not name a full disk.
    with atomic_file(target) as draft:
        draft.write_bytes(tensor_bytes(tensors, text))


def tensor_bytes(tensors: Mapping[str, Any], text: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as the bytes of a safetensors file, with a digest of all of it."""
    from safetensors.torch import save

    plain = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    return seals.seal_tensors(save(plain, metadata=dict(text or {})))


def kept_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return the tensors and texts of a file of the cache; None where it is absent or not whole."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return None
    touch(path)
    return whole_tensors(data, path)


def whole_tensors(data: bytes, path: Path) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return what the bytes of a file of the cache hold; of damage, which is said, nothing."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        texts = seals.whole_tensors(data)
        return load(data), texts
    except (ValueError, KeyError, SafetensorError) as error:
        if not isinstance(error, seals.UnsealedError):
            damaged(path)
        return None


def touch(path: Path) -> None:
    """Note that a file of the cache was used: what was used longest ago makes room first."""
    with contextlib.suppress(OSError):  # a cache that can be read alone has no order of use
        os.utime(path)


def damaged(path: Path) -> None:
    """Say, once in a process, that the cache holds damaged files, and go on without this one."""
    seals.tell_of_damage(cache_folder(), path)


def read_json(path: Path) -> Any:
    """Read a JSON file; a broken one is named."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise VPromptError(f"No file at {path}.") from None
    except OSError as error:
        raise VPromptError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:  # bytes that are no text
        raise VPromptError(f"{path} is not valid JSON: {error}.") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text; `where` names it if it is broken."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits
        raise VPromptError(f"{where} is not valid JSON: {error}.") from None


def digest(*parts: str | bytes) -> str:
    """Return a SHA-256 over parts that cannot run into one another."""
    total = hashlib.sha256()
    for part in parts:
        # A file name that is not UTF-8 holds lone surrogates, which no encoding has.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()


def _check_free(target: Path, overwrite: bool) -> None:
    if os.path.lexists(target) and not overwrite:
        raise VPromptError(
            f"{target} exists already. Choose another folder, or add --overwrite to replace it."
        )


def _put(draft: Path, target: Path, overwrite: bool) -> None:
    """Put the draft where the target is to be; what was there is then where the draft was.

    Readers see the one or the other, whole, where the system can swap two names at once.
    """
    for_good = _is_for_good(target)
    if for_good:
        _sync_tree(draft)
    if not overwrite:
        try:
            rename_new(draft, target)
        except FileExistsError:
            raise VPromptError(
                f"{target} appeared while this was computed, and is not replaced. Run the same "
                "command with another folder, or add --overwrite: what was computed is kept as far "
                "as the cache holds it."
            ) from None
    elif not _replaced(draft, target):
        _swap(draft, target)
    if for_good:
        _sync(target.parent)


def _replaced(draft: Path, target: Path) -> bool:
    """Put the draft in place in one step; False where the system has no such step."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return swap(draft, target)
        if not os.path.lexists(draft):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(draft))
        with contextlib.suppress(FileExistsError):  # another process was faster: swap with it
            rename_new(draft, target)
            return True
    return False


def _swap(draft: Path, target: Path) -> None:
    """Replace in two steps; whatever was there comes back if the second fails.

    A process that dies between the two leaves it to the next command to put it back.
    """
    retired = drafts.folder(target, "old")
    old = retired.path / target.name
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, old)
        try:
            os.replace(draft, target)
        except OSError:
            # Another process may have finished the same folder in between: then its result stands.
            if not target.is_dir():
                raise
    finally:
        # Whatever happened, Ctrl-C included: what was there goes only once something else is.
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)
        retired.discard()


def _is_for_good(target: Path) -> bool:
    """Say whether a power cut must not cost a file: not in the cache, which notices damage."""
    return not target.is_relative_to(cache_folder()) and not drafts.is_inside(target)


def _sync_tree(folder: Path) -> None:
    """Bring a folder with all that is in it to the disk."""
    found = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    if len(found) > _MANY and hasattr(os, "sync"):
        os.sync()
        return
    for path in (*found, *(Path(root) for root, _, _ in os.walk(folder))):
        _sync(path)


def _sync(path: Path) -> None:
    """Bring a file or the names in a folder to the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder on Windows
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_errors_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, VPromptError) as error:
        # A file inside a folder that is being drafted: name the folder, which people know.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise VPromptError(
            f"Could not write {target}: {_reason(cause)}. Nothing was left half-written; free some "
            "space or choose another place and run the command again."
        ) from cause


def _reason(error: OSError) -> str:
    """Return what the system says; NumPy says of a full disk how many items it wrote, no more."""
    if error.errno is None and "requested" in str(error) and "written" in str(error):
        return f"{os.strerror(errno.ENOSPC)} ({error})"
    return error.strerror or str(error)
