"""Command line of `vprompt cache`: look at what is kept for speed, and empty it."""

import json
import time
from typing import Annotated

import typer

from vprompt.cli import terminal
from vprompt.cli.options import JsonOption

app = typer.Typer(help="Look at the cache, and empty it.", no_args_is_help=True)
_DAY = 86400.0


@app.command("ls")
def cache_list(as_json: JsonOption = False) -> None:
    """Say what the cache holds, by kind, and when it was last used."""
    from vprompt.core import files, shelves

    held = shelves.entries()
    rows = []
    for kind in shelves.KINDS:
        own = [each for each in held if each.kind == kind]
        days = [(time.time() - each.used) / _DAY for each in own]
        rows.append(
            {
                "kind": kind,
                "entries": len(own),
                "bytes": sum(each.size for each in own),
                "oldest use, days": round(max(days, default=0.0), 1),
            }
        )
    whole = {"folder": str(files.cache_folder()), "limit_gib": shelves.limit(), "kinds": rows}
    if as_json:
        print(json.dumps(whole, indent=2))
        return
    heads = ["kind", "entries", "MiB", "oldest use, days"]
    cells = [
        [str(r["kind"]), str(r["entries"]), f"{int(str(r['bytes'])) / 2**20:.1f}", str(r[heads[3]])]
        for r in rows
    ]
    terminal.table(heads, cells)
    total = sum(each.size for each in held) / 2**30
    terminal.say(f"{files.cache_folder()}: {total:.2f} GiB of at most {shelves.limit():g}")


@app.command("clean")
def cache_clean(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help="images, evidence, prefix, checkpoints, hub. Default: all."),
    ] = None,
    older_than: Annotated[
        float, typer.Option(help="Only what was not used for so many days.")
    ] = 0.0,
) -> None:
    """Remove what is kept. It is computed or fetched again when it is needed."""
    from vprompt.core import shelves

    gone = shelves.clean(tuple(kinds or shelves.KINDS), older_than=older_than)
    size = sum(each.size for each in gone) / 2**20
    terminal.say(f"removed {len(gone)} entries, {size:.1f} MiB")
