"""HTML: what a run found, as one file that needs nothing beside it and opens from an e-mail."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from vprompt.core.errors import VPromptError
from vprompt.core.files import write_text
from vprompt.report import view


def write_report(run: Mapping[str, Any], path: Path | str) -> None:
    """Write the report of a run record; the file appears whole or stays as it was.

    Raises VPromptError when the record lacks something that every run has.
    """
    write_text(Path(path), render(run))


def render(run: Mapping[str, Any]) -> str:
    """Return the report as HTML; the same record gives the same text."""
    try:
        return fill("report.html", view.build(run))
    except (KeyError, jinja2.UndefinedError) as error:
        raise VPromptError(
            f"This record is not a whole run of vprompt; what is missing: {error}. Give what "
            "`vprompt learn` or `vprompt combine` wrote to run.json."
        ) from error


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of this folder filled with values, which are escaped unless drawn here."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vprompt", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
