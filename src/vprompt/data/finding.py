"""Finding: the images in a folder and below, by one rule for tasks and for what is predicted.

An image is a file whose name ends in a suffix that Pillow reads. Hidden files, and the folders in
which operating systems keep their own, do not count. Links are followed, but never upwards.
"""

import functools
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from vprompt.core.errors import VPromptError
from vprompt.data.census import LeftOut, counted, tally

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".tga", ".pcx", ".qoi", ".sgi", ".ras"),
)
_SYSTEM = {  # folders and files that no person made
    *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
    *("__pycache__", "thumbs.db", "desktop.ini"),
}
SPLITS = {  # what people call their splits, in small letters
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), "test"),
}
HIDDEN = "hidden"
BROKEN, UPWARDS = "linked to nothing", "linked to a folder above"


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Return the suffixes of image files, in small letters, that this Pillow reads."""
    from PIL import Image

    known = Image.registered_extensions()  # imports every reader, once
    return tuple(suffix for suffix in _SUFFIXES if known.get(suffix) in Image.OPEN)


def is_image(name: str) -> bool:
    """Say whether a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in suffixes()


def is_hidden(name: str) -> bool:
    """Say whether a name is hidden, as `._IMG.png` is, or is the system's own."""
    return name.startswith(".") or name.lower() in _SYSTEM


def same_text(text: str) -> str:
    """Return the composed form (NFC) of a text, so that one name is not two."""
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True, eq=False)
class Folder:
    """One folder as it was found: its own images, its folders, and what was left out of it.

    `real` is where it lies when all links are followed; `linked` says the same of those images
    that are links.
    """

    path: Path
    real: Path
    images: list[Path] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    linked: dict[Path, Path] = field(default_factory=dict)
    links: int = 0

    @property
    def name(self) -> str:
        """The folder's name, composed."""
        return same_text(self.path.name)

    @functools.cached_property
    def holding(self) -> list["Folder"]:
        """The folders in it that hold images, at any depth."""
        return [each for each in self.folders if each.images or each.holding]

    def walk(self) -> Iterator["Folder"]:
        """Yield this folder and all below."""
        yield self
        for each in self.folders:
            yield from each.walk()

    def all_images(self) -> list[Path]:
        """Return the images in it and below, in the order of their names."""
        found = [image for each in self.walk() for image in each.images]
        return sorted(found, key=lambda path: same_text(path.relative_to(self.path).as_posix()))

    def places(self) -> dict[Path, Path]:
        """Return where every image in it and below really lies."""
        return {
            image: each.linked.get(image, each.real / image.name)
            for each in self.walk()
            for image in each.images
        }

    def all_left_out(self) -> tuple[LeftOut, ...]:
        """Return what was left out in it and below, by reason."""
        return tally(left for each in self.walk() for left in each.left_out)

    def all_links(self) -> int:
        """Count the links that were followed in it and below."""
        return sum(each.links for each in self.walk())


def explore(folder: Path) -> Folder:
    """Return a folder with all that is below it; raises VPromptError where it may not be read."""
    real = folder.resolve()
    return _explore(folder, real, frozenset((real, *real.parents)), Path())


def find(folder: Path) -> Folder:
    """Return the images of a folder; an error says what is there where none is found."""
    found = explore(folder)
    if not found.images and not found.holding:
        raise VPromptError(f"The folder {folder} holds no image files{_instead(found)}.")
    return found


def no_image(folder: Folder) -> str:
    """Return a sentence on a class folder without an image."""
    return (
        f"The class folder {folder.path} holds no image{_instead(folder)}. Remove it, or add files "
        f"that end in one of: {', '.join(suffixes())}."
    )


def _instead(folder: Folder) -> str:
    left = folder.all_left_out()
    return f", but {'; '.join(map(str, left))}" if left else ""


def _explore(folder: Path, real: Path, above: frozenset[Path], below: Path) -> Folder:
    """Read one folder; `above` are the real places of all folders it stands in, its own with it."""
    found, links = Folder(folder, real), 0
    left: dict[str, list[str]] = {HIDDEN: []}
    for entry in sorted(_entries(folder), key=lambda entry: same_text(entry.name)):
        path, place, shown = folder / entry.name, real / entry.name, str(below / entry.name)
        if is_hidden(entry.name):
            left[HIDDEN].append(shown)
            continue
        if entry.is_symlink():
            target = _target(path)
            if target is None:
                left.setdefault(BROKEN, []).append(shown)
                continue
            place = target
        if entry.is_dir():
            if place in above:
                left.setdefault(UPWARDS, []).append(shown)
                continue
            inside = above | {place, *(place.parents if entry.is_symlink() else ())}
            found.folders.append(_explore(path, place, inside, below / entry.name))
        elif is_image(entry.name) and entry.is_file():
            found.images.append(path)
            if entry.is_symlink():
                found.linked[path] = place
        else:
            left.setdefault(_kind(entry.name), []).append(shown)
            continue
        links += entry.is_symlink()
    found.left_out.extend(one for reason, names in left.items() for one in counted(reason, names))
    return replace(found, links=links)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except OSError as error:
        raise VPromptError(
            f"The folder {folder} cannot be read: {error.strerror or error}. Mend its permissions, "
            "or name another folder."
        ) from None


def _target(link: Path) -> Path | None:
    try:
        return link.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or to itself
        return None


def _kind(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return f"ending in {suffix}" if suffix else "without a suffix"
