"""Suite: VTAB's order of columns and its groups, and where tasks of other names go.

Reference: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", arXiv 1910.04867.
"""

from collections.abc import Iterable, Mapping

from vprompt.data import vtab

GROUPS = ("natural", "specialized", "structured")
_POSITION = {task.id: index for index, task in enumerate(vtab.TASKS)}


def canonical(task: str) -> str:
    """Return VTAB's own name of a task under any of its known names; others stay as they are."""
    known = vtab.find(task)
    return task if known is None else known.id


def group_of(task: str) -> str | None:
    """Return the VTAB group of a task, or None where the task is not VTAB's."""
    known = vtab.find(task)
    return None if known is None else known.group.lower()


def label_of(task: str) -> str:
    """Return the head of a task's column."""
    known = vtab.find(task)
    return task if known is None else known.title


def ordered(tasks: Iterable[str], groups: Mapping[str, str | None]) -> list[str]:
    """Return tasks in VTAB's order: by group, VTAB's own first, then by name; no group comes last.

    `groups` names the group of tasks that are not VTAB's.
    """

    def key(task: str) -> tuple[int, str, int, str]:
        group = groups.get(task) or group_of(task)
        rank = GROUPS.index(group) if group in GROUPS else len(GROUPS) + (group is None)
        return rank, group or "", _POSITION.get(canonical(task), len(_POSITION)), task

    return sorted(tasks, key=key)
