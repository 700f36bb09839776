"""Command line of what listens: `vprompt serve` for programs, `vprompt ui` for people."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.cli import terminal
from vprompt.cli.options import DeviceOption, ForceOption, QuietOption
from vprompt.cli.use import BackboneOption, ExactnessOption
from vprompt.core.errors import VPromptError

TOKEN = "VPROMPT_TOKEN"
PoolsArgument = Annotated[
    list[Path], typer.Argument(help="Folders of artefact folders, or single artefacts.")
]
HostOption = Annotated[
    str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
]
PortOption = Annotated[int, typer.Option(help="Port to listen at; 0 for any that is free.")]
BodyOption = Annotated[float, typer.Option("--body-mib", help="Largest request, MiB.")]
MegapixelsOption = Annotated[float, typer.Option(help="Largest image, millions of pixels.")]
QueueOption = Annotated[int, typer.Option(help="Images that may wait; more are answered 429.")]
SecondsOption = Annotated[float, typer.Option(help="Longest time of one request.")]
ServedBatchOption = Annotated[int, typer.Option("--batch-size", help="Most images in a batch.")]
LatencyOption = Annotated[
    float, typer.Option("--latency-ms", help="How long an image may wait for others.")
]
WatchOption = Annotated[
    float, typer.Option("--watch-seconds", help="How often folders are looked at for changes.")
]


def serve(
    pools: PoolsArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    body_mib: BodyOption = 32.0,
    megapixels: MegapixelsOption = 50.0,
    queue: QueueOption = 256,
    seconds: SecondsOption = 30.0,
    batch_size: ServedBatchOption = 64,
    latency_ms: LatencyOption = 5.0,
    watch_seconds: WatchOption = 2.0,
    model: BackboneOption = None,
    device: DeviceOption = "auto",
    precision: ExactnessOption = "auto",
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Label images over HTTP, each with its own artefact; $VPROMPT_TOKEN may hold a token."""
    limits = {
        "body_mib": body_mib,
        "megapixels": megapixels,
        "queue": queue,
        "seconds": seconds,
        "batch_size": batch_size,
        "latency_ms": latency_ms,
    }
    how = {"model": model, "device": device, "force": force}
    _listen(pools, host, port, limits, how, precision, watch_seconds, quiet)


def page(
    pools: PoolsArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    reports: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of HTML reports to list; may be repeated. Pools are looked in."),
    ] = None,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser.")
    ] = False,
    model: BackboneOption = None,
    device: DeviceOption = "auto",
    precision: ExactnessOption = "auto",
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve one local page: drop images, compare artefacts, browse the pool, open reports."""
    how = {"model": model, "device": device, "force": force}
    places = [*pools, *(reports or [])]
    _listen(pools, host, port, {}, how, precision, 2.0, quiet, reports=places, browser=open_browser)


def _listen(
    pools: list[Path],
    host: str,
    port: int,
    limits: dict[str, Any],
    how: dict[str, Any],
    precision: str,
    watch_seconds: float,
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
            "'vprompt[serve]'"
        ) from None
    from vprompt.web import application, listening, pages
    from vprompt.web.limits import Limits
    from vprompt.web.shelf import Shelf

    def say(text: str) -> None:
        print(terminal.printable(f"vprompt: {text}"), file=sys.stderr, flush=True)

    chosen, token = Limits(**limits), os.environ.get(TOKEN) or None
    bound = listening.bind(host, port)
    with bound:
        with terminal.progress(quiet) as progress:
            shelf = Shelf(pools, say=say, progress=progress, **how)
        local = host in listening.LOOPBACK
        app = application.make(
            shelf,
            chosen,
            precision=precision,
            token=token,
            hosts=[*listening.LOOPBACK, "[::1]"] if local else (),
            watch_seconds=watch_seconds,
        )
        if reports is not None:
            pages.add(app, reports)
        if not local and token is None:
            say(f"anyone who reaches {host} may use this server: set {TOKEN} to ask for a token")

        served, where = len(shelf.server.artifacts), listening.address(bound)
        # The socket listens already: whoever calls now waits for the server to take it.
        print(f"{served} artefact{'s' * (served != 1)} at {where}", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(where)
        listening.server(app, seconds=chosen.seconds).run(sockets=[bound])
