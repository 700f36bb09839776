"""Renaming: a spelling of an earlier release is understood, with a note, until the next."""

import warnings
from collections.abc import Mapping
from typing import Any

from vprompt.core.errors import Renamed, VPromptError


def respelled(
    given: Mapping[str, Any], old: Mapping[str, str], *, depth: int = 3
) -> dict[str, Any]:
    """Return values under the names of today; an old spelling is understood, with a warning."""
    found = {}
    for name, value in given.items():
        today = old.get(name, name)
        if today != name:
            if today in given:
                raise VPromptError(f"{name} is {today} now, and both are given. Leave out {name}.")
            warnings.warn(
                f"{name} is {today} now; the old spelling goes with the next release.",
                Renamed,
                stacklevel=depth,
            )
        found[today] = value
    return found
