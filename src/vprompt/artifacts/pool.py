"""Pool: artefacts that others have learned, read whole: check and load them.

`catalogue.py` lists them without their tensors.
"""

from dataclasses import replace

from vprompt.artifacts import artifact, origin
from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.catalogue import Entry, Pool, describe, entries
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.models.backbone import Backbone


def check(pool: Pool, backbone: Backbone | None = None) -> list[Entry]:
    """Read every artefact whole and return the entries, each with its first problem if any.

    It takes little memory, whatever strangers left there. With a backbone, the start of every
    prompt is computed again and checked, too.
    """
    checked = []
    for entry in entries(pool):
        problem, start = entry.problem, ""
        if problem is None:
            try:
                artifact.check(entry.folder)
                if backbone is not None:
                    loaded = artifact.load(entry.folder)
                    artifact.check_fits(loaded.config, backbone)
                    start = "" if loaded.prompt is None else origin.of(loaded, backbone).how
            except VPromptError as error:
                problem = str(error)
        checked.append(replace(entry, problem=problem, start=start))
    return checked


def chosen(pool: Pool, exclude: tuple[str, ...]) -> list[Entry]:
    """Return the entries of a pool but those of the names `exclude`, which have to be in it."""
    found = entries(pool)
    names = [entry.name for entry in found]
    unknown = sorted(set(exclude) - set(names))
    if unknown:
        raise VPromptError(
            f"The pool {describe(pool)} holds no {unknown[0]!r}. It holds: {', '.join(names)}."
        )
    return [entry for entry in found if entry.name not in exclude]


def load(
    pool: Pool,
    backbone: Backbone,
    *,
    exclude: tuple[str, ...] = (),
    force: bool = False,
    progress: Progress = SILENT,
) -> list[Artifact]:
    """Return all prompts of a pool that fit the backbone; one that does not is an error.

    `exclude` leaves out sources by name, such as the target's own prompt. Adapters without a
    prompt, and folders that hold no artefact, are left out, too, and `progress` says which.
    """
    found = chosen(pool, exclude)
    without = [f"{entry.name} ({entry.promptless})" for entry in found if entry.promptless]
    if without:
        progress.say(f"left out {', '.join(without)}")
    sources = [artifact.load(entry.folder) for entry in found if not entry.promptless]
    for source in sources:
        if not force:
            artifact.check_fits(source.config, backbone, what=f"The source {source.name!r}")
    if not sources:
        raise VPromptError(
            f"The pool {describe(pool)} holds no prompt to combine after leaving out "
            f"{', '.join([*exclude, *without]) or 'nothing'}."
        )
    return sources
