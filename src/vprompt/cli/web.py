"""Command line of what listens: `vprompt serve` for programs, `vprompt ui` for people."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import commands, terminal
from vprompt.cli.options import QuietOption
from vprompt.core.errors import VPromptError
from vprompt.core.settings import OUTPUT, WHAT
from vprompt.web.limits import PageSettings, ServeSettings

TOKEN = "VPROMPT_TOKEN"
PoolsArgument = Annotated[
    list[Path], typer.Argument(help="Folders of artefact folders, or single artefacts.")
]


@commands.of_verb(ServeSettings)
def serve(given: dict[str, Any], pools: PoolsArgument, quiet: QuietOption = False) -> None:
    """Label images over HTTP, each with its own artefact; $VPROMPT_TOKEN may hold a token."""
    _listen(pools, ServeSettings.checked(given), quiet)


@commands.of_verb(PageSettings)
def page(
    given: dict[str, Any],
    pools: PoolsArgument,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of HTML reports to list; may be repeated. Pools are looked in.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    open_browser: Annotated[
        bool,
        typer.Option(
            "--open", help="Open the page in this machine's browser.", rich_help_panel=OUTPUT
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Serve one local page: drop images, compare artefacts, browse the pool, open reports."""
    places = [*pools, *(reports or [])]
    _listen(pools, ServeSettings.checked(given), quiet, reports=places, browser=open_browser)


def _listen(
    pools: list[Path],
    settings: ServeSettings,
    quiet: bool,
    *,
    reports: list[Path] | None = None,
    browser: bool = False,
) -> None:
    """Serve pools, with the page where there are places of `reports`."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise VPromptError(
            f"A server needs {error.name}, which is not installed. Run: pip install "
            "'vprompt[serve]'."
        ) from None
    from vprompt.web import application, listening, pages
    from vprompt.web.shelf import Shelf

    def say(text: str) -> None:
        print(terminal.printable(f"vprompt: {text}"), file=sys.stderr, flush=True)

    token, host = os.environ.get(TOKEN) or None, settings.host
    bound = listening.bind(host, settings.port)
    with bound:
        with terminal.progress(quiet) as progress:
            shelf = Shelf(
                pools,
                model=settings.model,
                device=settings.device,
                force=settings.force,
                say=say,
                progress=progress,
            )
        local = host in listening.LOOPBACK
        app = application.make(
            shelf,
            settings,
            precision=settings.precision,
            token=token,
            hosts=[*listening.LOOPBACK, "[::1]"] if local else (),
            watch_seconds=settings.watch_seconds,
        )
        if reports is not None:
            pages.add(app, reports)
        if not local and token is None:
            say(f"anyone who reaches {host} may use this server: set {TOKEN} to ask for a token")

        served, where = len(shelf.server.artifacts), listening.address(bound)
        # The socket listens already: whoever calls now waits for the server to take it.
        terminal.say(f"{served} artefact{'s' * (served != 1)} at {where}")
        if browser:
            import webbrowser

            webbrowser.open(where)
        listening.server(app, seconds=settings.seconds).run(sockets=[bound])
