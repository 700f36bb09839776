"""Command line of `vprompt bench pack` and `bench unpack`: many result files become one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vprompt.cli import terminal

if TYPE_CHECKING:
    from vprompt.results.records import Records

FoldersArgument = Annotated[
    list[Path],
    typer.Argument(help="One or several --output of `bench run`, or folders of .json results."),
]


def bench_pack(folders: FoldersArgument) -> None:
    """Pack finished runs into one small file without loss; every command can read it."""
    for folder in folders:
        done = _records(folder).pack()
        before, after = done.bytes_before / 1e6, done.bytes_after / 1e6
        terminal.say(
            f"{done.packed}: {done.records} records, {done.added} of them new, "
            f"{before:,.2f} MB in {after:,.2f} MB"
        )
        for name in done.left:
            terminal.say(
                f"{name}.json stays a file: it is not written as vprompt writes its results"
            )


def bench_unpack(folders: FoldersArgument) -> None:
    """Turn packed runs into files again, each as it was."""
    for folder in folders:
        records = _records(folder)
        terminal.say(f"{records.folder}: {records.unpack()} files")


def _records(folder: Path) -> "Records":
    """Return the runs of a benchmark's folder, or the results that a folder itself holds."""
    from vprompt.bench.store import MANIFEST, Store
    from vprompt.results.records import Records

    return Store(folder).runs if (folder / MANIFEST).is_file() else Records(folder)
