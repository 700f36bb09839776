"""Final: what a run's own result is called, among the rows of what it is compared with."""

from collections.abc import Mapping
from typing import Any

LEARNED, TUNED, UNTUNED = "learned", "tuned", "result, untuned"
NAMES = (LEARNED, TUNED, UNTUNED)


def name(command: str, epochs: int) -> str:
    """Return what the result of a verb is called; `combine` may tune nothing."""
    if command != "combine":
        return LEARNED
    return TUNED if epochs else UNTUNED


def name_in(run: Mapping[str, Any]) -> str:
    """Return what a record calls it; of an older one, any result of `combine` is `tuned`."""
    return next((each for each in NAMES if each in run["test"]), LEARNED)


def of(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a run's own result was measured, or None where the test split stayed closed."""
    found: dict[str, Any] | None = run["test"].get(name_in(run))
    return found
