"""VTAB: a folder in the VTAB-1k format, with `train800.txt`, `val200.txt` and `test.txt`.

Reference: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", arXiv 1910.04867.
"""

from pathlib import Path

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest
from vprompt.data import vtab
from vprompt.data.census import Reading
from vprompt.data.task import SealedSplit, Split, Task
from vprompt.data.vtab_lists import SPLITS, Listed, class_names, read_list


def load(*, root: str, name: str = "", prefix: str = "", allow_absent: bool = False) -> Task:
    """Read `root/name`, or `root` itself without a name.

    `name` may be a VTAB task under any of its known names. `prefix` chooses another task on the
    same images: `object` reads `object_train800.txt` and so on.
    """
    folder = _find_folder(Path(root), name)
    start = f"{prefix}_" if prefix else ""
    lists = {
        split: read_list(folder, f"{start}{split}.txt")
        for split in SPLITS
        if (folder / f"{start}{split}.txt").is_file()
    }
    if "train800" not in lists:
        found = sorted(p.name for p in folder.glob("*train800.txt")) or ["none"]
        raise VPromptError(
            f"{folder} has no {start}train800.txt. Lists of training images there: "
            f"{', '.join(found)}."
        )
    known = None if prefix else vtab.find(folder.name)
    classes = class_names(folder, start, lists, known)
    splits = {name: Split(name, *parts) for name, parts in lists.items()}
    return Task(
        name=folder.name + (f":{prefix}" if prefix else ""),
        classes=classes,
        train=splits["train800"],
        val=splits.get("val200"),
        test=SealedSplit(splits["test"]) if "test" in splits else None,
        facts={
            "source": "vtab-1k folder",
            "folder": folder.name,
            "prefix": prefix,
            **_known_facts(known, lists["train800"]),
        },
        allow_absent=allow_absent,
        reading=Reading(f"as listed in {', '.join(f'{start}{split}.txt' for split in lists)}"),
    )


def _find_folder(root: Path, name: str) -> Path:
    folder = vtab.find_folder(root / name if name else root)
    if folder is not None:
        return folder
    known = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    raise VPromptError(f"No folder for the task {name or str(root)!r}.{suggest(name, known)}")


def _known_facts(known: vtab.VtabTask | None, train: Listed) -> dict[str, str]:
    """Say which VTAB task it is, and warn of a copy that has lost something on the way."""
    if known is None:
        return {}
    facts = {"vtab": known.id}
    if known.lossless and train[0][0].suffix.lower() in (".jpg", ".jpeg"):
        facts["warning"] = vtab.LOSSY.format(title=known.title)
    return facts
