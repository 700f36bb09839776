"""Pages: the one local page, cards, and HTML reports that lie beside a pool."""

from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from vprompt.web.limits import Refused

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_ONLY_OURS = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
_ONLY_OURS += "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# A report holds its own styles and pictures, and may run nothing.
_STILL = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


def add(app: FastAPI, places: Sequence[Path]) -> None:
    """Give an application the page, and the reports of some folders."""
    service = app.state.service
    service.pages |= set(_FILES)
    for address, (name, kind) in _FILES.items():
        app.add_api_route(address, _file(name, kind), include_in_schema=False)

    @app.get("/artifacts/{name}/card", response_class=PlainTextResponse)
    async def card(name: str) -> Response:
        text = service.shelf.card(name)
        if text is None:
            raise Refused(404, f"No artefact {name[:100]!r} is served.")
        return PlainTextResponse(text)

    @app.get("/reports")
    async def reports() -> list[str]:
        return sorted(_found(places))

    # `path`, for a report is named with the folder that it lies in.
    @app.get("/reports/{name:path}", response_class=HTMLResponse)
    async def report(name: str) -> Response:
        known = _found(places)
        if name not in known:
            raise Refused(404, f"No report {name[:100]!r}.")
        text = known[name].read_text(encoding="utf-8", errors="replace")
        return HTMLResponse(text, headers={"Content-Security-Policy": _STILL})


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    text = (resources.files("vprompt.web") / "page" / name).read_text(encoding="utf-8")

    async def answer() -> Response:
        headers = {"Content-Security-Policy": _ONLY_OURS, "Cache-Control": "no-cache"}
        headers["X-Content-Type-Options"] = "nosniff"
        return Response(text, media_type=kind, headers=headers)

    return answer


def _found(places: Sequence[Path]) -> dict[str, Path]:
    """Return the HTML files of folders, and of the folders in them, by a name to show."""
    found = {}
    for place in places:
        folder = Path(place).expanduser()
        for path in [*folder.glob("*.html"), *folder.glob("*/*.html")]:
            # What a link leads out to is not what a person named.
            if folder.resolve() in path.resolve().parents and path.is_file():
                found[str(path.relative_to(folder))] = path
    return found
