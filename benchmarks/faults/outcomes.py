"""Outcomes: the four ways in which a trial ends, and what must not be left behind."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from vprompt.core.errors import VPromptError

BAD = ("wrong", "traceback", "litter")
_SHORTEST = 20  # signs of a sentence


def outcome(trial: Callable[[], bool]) -> str:
    """Return `same` or `wrong` as the trial says, `refused`, or `traceback`, which is shown."""
    try:
        return "same" if trial() else "wrong"
    except VPromptError as error:
        return "refused" if len(str(error)) > _SHORTEST else "traceback"
    except Exception as error:
        print(f"traceback: {type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"


def litter(folders: Iterable[Path]) -> list[Path]:
    """Return the hidden files and folders below some places: none should outlive its process."""
    return [path for folder in folders for path in folder.rglob(".*")]
