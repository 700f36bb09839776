"""HTML: stub."""

from pathlib import Path
from typing import Any


def write_report(run: dict[str, Any], path: Path) -> None:
    """Write."""
