"""Sentences: class names become texts such as `a photo of a dog.`, for models that read.

Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv 2103.00020.
"""

from collections.abc import Sequence
from pathlib import Path

from vprompt.core.errors import VPromptError

GENERIC = ("a photo of a {}.",)


def fill(templates: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return every class in every template, class by class; underscores in names become spaces."""
    check(templates)
    names = [name.replace("_", " ") for name in classes]
    return [template.replace("{}", name) for name in names for template in templates]


def check(templates: Sequence[str]) -> None:
    """Raise VPromptError unless there are templates and each names its class once."""
    if not templates:
        raise VPromptError(f"There are no templates. Give at least one, such as {GENERIC[0]!r}.")
    for template in templates:
        if template.count("{}") != 1:
            raise VPromptError(
                f"A template holds {{}} once, where the class name goes, but got {template!r}. "
                f"Write for example {GENERIC[0]!r}."
            )


def read_templates(path: Path | str) -> tuple[str, ...]:
    """Read one's own templates from a text file, one a line; empty lines do not count."""
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise VPromptError(
            f"Cannot read templates from {str(path)!r} ({reason}). Give a text file with one "
            f"sentence a line, such as {GENERIC[0]!r}, or the sentence itself."
        ) from None
    found = tuple(line.strip() for line in lines if line.strip())
    check(found)
    return found
