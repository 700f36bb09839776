"""Files: everything that touches the disk and must never leave half a result behind."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vprompt.core.errors import CacheWarning, VPromptError

_TOLD: set[tuple[Path, str]] = set()  # what a person was told of in this process


def cache_folder() -> Path:
    """Return where decoded images and evidence are kept: `$VPROMPT_CACHE`, or the user's cache."""
    if chosen := os.environ.get("VPROMPT_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("vprompt"))


@contextlib.contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends, and vanishes if it fails.

    A folder of that name stays as it is until the new one is complete.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise VPromptError(
            f"{target} exists already. Choose another folder, or add --overwrite to replace it."
        )
    with _disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _disk_errors_explained(target):
            yield draft
            draft.chmod(0o755)
            _swap(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(target: Path, identity: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder that becomes `target` when the block ends; if it fails, the folder is kept.

    The next try finds it as it was, so that finished files need not be written again, unless it
    was begun for another `identity`: then it is thrown away.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise VPromptError(
            f"{target} exists already. Choose another folder, or add --overwrite to replace it."
        )
    draft = target.parent / f".{target.name}.partial"
    mark = ".identity"
    with _disk_errors_explained(target):
        if not (draft / mark).is_file() or (draft / mark).read_text("utf-8") != identity:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            write_text(draft / mark, identity)
        yield draft
        _swap(draft, target)
        (target / mark).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder; it is renamed to `target` when the block ends."""
    target = Path(target)
    with _disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    draft = Path(name)
    try:
        with _disk_errors_explained(target):
            yield draft
            draft.chmod(0o644)
            os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder, for what memory should not hold; it vanishes after.

    It lies in the cache, or where that cannot be written in the system's folder for such files.
    """
    with _disk_errors_explained(cache_folder()):
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix=".scratch.", dir=cache_folder())
        except OSError:
            made = tempfile.TemporaryDirectory(prefix="vprompt.")
        with made as folder:
            yield Path(folder)


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
        _warn_of_cache(cause.strerror or str(cause))


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
        # A lone surrogate, as in a file name that is not UTF-8, is written as its escape.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted; NaN is refused because JSON has none."""
    write_text(target, json_text(value))


def json_text(value: Any) -> str:
    """Return the text of a JSON file as `write_json` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_tensors(
    target: Path, tensors: Mapping[str, Any], text: Mapping[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file, atomically; `text` becomes its metadata.

    The bytes are written here, not by safetensors, whose own errors would not name a full disk.
    """
    from safetensors.torch import save

    plain = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with atomic_file(target) as draft:
        draft.write_bytes(save(plain, metadata=dict(text or {})))


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


def _swap(draft: Path, target: Path) -> None:
    """Put the draft where the target is; whatever was there comes back if that fails."""
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    old = retired / "folder"
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
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(retired, ignore_errors=True)


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
            f"Could not write {target}: {cause.strerror or cause}. Nothing was left half-written; "
            "free some space or choose another place and run the command again."
        ) from cause
