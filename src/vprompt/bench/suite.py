"""Suite: VTAB's order of columns and its groups, and where tasks of other names go.

Reference: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", arXiv 1910.04867.
"""

from collections.abc import Iterable, Mapping

from vprompt.tasks.vtab import ALIASES

GROUPS = ("natural", "specialized", "structured")

# Label in tables and number of images in the official test split, in the order of every table.
VTAB: dict[str, tuple[str, str, int]] = {
    "cifar": ("CIFAR-100", "natural", 10_000),
    "caltech101": ("Caltech101", "natural", 6_084),
    "dtd": ("DTD", "natural", 1_880),
    "oxford_flowers102": ("Flowers102", "natural", 6_149),
    "oxford_iiit_pet": ("Pets", "natural", 3_669),
    "svhn": ("SVHN", "natural", 26_032),
    "sun397": ("Sun397", "natural", 21_750),
    "patch_camelyon": ("Camelyon", "specialized", 32_768),
    "eurosat": ("EuroSAT", "specialized", 5_400),
    "resisc45": ("Resisc45", "specialized", 6_300),
    "diabetic_retinopathy": ("Retinopathy", "specialized", 42_670),
    "clevr_count": ("Clevr-Count", "structured", 15_000),
    "clevr_dist": ("Clevr-Dist", "structured", 15_000),
    "dmlab": ("DMLab", "structured", 22_735),
    "kitti": ("KITTI-Dist", "structured", 711),
    "dsprites_loc": ("dSpr-Loc", "structured", 73_728),
    "dsprites_ori": ("dSpr-Ori", "structured", 73_728),
    "smallnorb_azi": ("sNORB-Azim", "structured", 12_150),
    "smallnorb_ele": ("sNORB-Ele", "structured", 12_150),
}
_POSITION = {name: index for index, name in enumerate(VTAB)}


def canonical(task: str) -> str:
    """Return VTAB's own name of a task under any of its known names; others stay as they are."""
    return next((name for name, known in ALIASES.items() if task == name or task in known), task)


def group_of(task: str) -> str | None:
    """Return the VTAB group of a task, or None where the task is not VTAB's."""
    known = VTAB.get(canonical(task))
    return None if known is None else known[1]


def label_of(task: str) -> str:
    """Return the head of a task's column."""
    known = VTAB.get(canonical(task))
    return task if known is None else known[0]


def ordered(tasks: Iterable[str], groups: Mapping[str, str | None]) -> list[str]:
    """Return tasks in VTAB's order: by group, VTAB's own first, then by name; no group comes last.

    `groups` names the group of tasks that are not VTAB's.
    """

    def key(task: str) -> tuple[int, str, int, str]:
        group = groups.get(task) or group_of(task)
        rank = GROUPS.index(group) if group in GROUPS else len(GROUPS) + (group is None)
        return rank, group or "", _POSITION.get(canonical(task), len(VTAB)), task

    return sorted(tasks, key=key)
