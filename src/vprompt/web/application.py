"""Application: the addresses of a server, and what each of them answers."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vprompt.web import reading
from vprompt.web.counts import Counts
from vprompt.web.gathering import Answer, Gatherer
from vprompt.web.limits import Limits, Refused
from vprompt.web.reading import Named
from vprompt.web.shelf import Shelf

_DECODERS = 2  # threads
_OPEN = ("/health",)  # what needs no token


class _Door:
    """Asks for the token, and refuses bodies above a limit, their length told or not."""

    def __init__(self, app: ASGIApp, service: "_Service", token: str | None) -> None:
        self.app, self.service, self.token = app, service, token
        self.most = round(service.limits.body_mib * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._knows(scope["path"], headers.get(b"authorization", b"")):
            refusal = Refused(401, "Send the server's token: `Authorization: Bearer TOKEN`.")
            answer = _say(refusal)
            answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        told = headers.get(b"content-length", b"0")
        too_large = Refused(413, f"A request may have {self.service.limits.body_mib:g} MiB.")
        if told.isdigit() and int(told) > self.most:
            await _say(too_large)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise too_large
            return message

        await self.app(scope, counted, send)

    def _knows(self, path: str, given: bytes) -> bool:
        if not self.token or path in _OPEN or path in self.service.pages:
            return True
        return hmac.compare_digest(given, f"Bearer {self.token}".encode())


def make(
    shelf: Shelf,
    limits: Limits,
    *,
    precision: str = "auto",
    token: str | None = None,
    hosts: Sequence[str] = (),
    watch_seconds: float = 2.0,
) -> FastAPI:
    """Return the application; `hosts` are the names that requests may call this machine by."""
    counts = Counts()
    gatherer = Gatherer(lambda: shelf.server, limits, precision=precision, observe=counts.batched)
    service = _Service(shelf, limits, gatherer, counts)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        watcher = asyncio.create_task(service.watch(watch_seconds))
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.to_thread(gatherer.close)
            service.decoders.shutdown()

    from vprompt import __version__

    app = FastAPI(
        title="vprompt",
        version=__version__,
        summary="Visual prompts for a frozen backbone, many of them in one batch.",
        lifespan=lifespan,
        docs_url=None,  # their pages fetch from elsewhere; /openapi.json is all there is
        redoc_url=None,
    )
    app.state.service = service

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        del request
        return _say(error)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "artifacts": len(shelf.server.artifacts), "waiting": len(gatherer)}

    @app.get("/artifacts")
    async def listing() -> list[dict[str, Any]]:
        return shelf.rows()

    @app.get("/metrics")
    async def metrics() -> Response:
        counts.waiting.set(len(gatherer))
        counts.artifacts.set(len(shelf.server.artifacts))
        counts.problems.set(len(shelf.problems))
        return Response(counts.text(), media_type="text/plain; version=0.0.4")

    @app.post("/predict", openapi_extra=reading.BODY)
    async def predict(request: Request) -> Response:
        began = time.monotonic()
        try:
            response = await service.predict(request)
        except Refused as error:
            response = _say(error)
        except ClientDisconnect:
            response = _say(Refused(499, "The client is gone."))
        counts.requests.labels(str(response.status_code)).inc()
        counts.seconds.observe(time.monotonic() - began)
        return response

    app.add_middleware(_Door, service=service, token=token)
    if hosts:
        # Another site's page cannot call a server on this machine by a name of its own.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


class _Service:
    """What the addresses share: shelf, queue, decoders and counts."""

    def __init__(self, shelf: Shelf, limits: Limits, gatherer: Gatherer, counts: Counts) -> None:
        self.shelf, self.limits, self.gatherer, self.counts = shelf, limits, gatherer, counts
        self.decoders = ThreadPoolExecutor(_DECODERS, "vprompt-decode")
        self.pages: set[str] = set()
        self.inside = 0  # images that are decoded, wait or are computed

    async def watch(self, seconds: float) -> None:
        """Read folders again that change, for as long as the server runs."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.shelf.refresh)

    async def predict(self, request: Request) -> Response:
        """Answer one request: its images alone may fail, each with a status of its own."""
        self._room(1)  # before the body is read
        try:
            async with asyncio.timeout(self.limits.seconds):
                named = await reading.read(request, self.limits)
                self._room(len(named))
                self.inside += len(named)
                try:
                    found = await self._all(request, named)
                finally:
                    self.inside -= len(named)
        except TimeoutError:
            raise Refused(
                504, f"No answer within {self.limits.seconds:g} seconds.", retry_after=1
            ) from None
        results = []
        for one, each in zip(named, found, strict=True):
            status = each.status if isinstance(each, Refused) else 200
            known = one.artifact if one.artifact in self.shelf.server.artifacts else None
            self.counts.images.labels(known or "", str(status)).inc()
            results.append(_entry(one, each))
        answered = any(isinstance(each, Answer) for each in found)
        if answered:
            return JSONResponse({"results": results})
        first = next(each for each in found if isinstance(each, Refused))
        return _say(first, {"results": results})

    async def _all(self, request: Request, named: Sequence[Named]) -> list[Answer | Refused]:
        """Return an answer or a refusal for every image; give up where nobody waits for it."""
        work = asyncio.gather(*(self._one(each) for each in named))
        gone = asyncio.create_task(_disconnected(request))
        try:
            both: set[asyncio.Future[Any]] = {work, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Refused(499, "The client is gone.")
            return list(work.result())
        finally:
            gone.cancel()
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(work, return_exceptions=True)

    async def _one(self, named: Named) -> Answer | Refused:
        try:
            name = self._name(named.artifact)
            config = self.shelf.server.artifacts[name].data_config
            pixels = await asyncio.get_running_loop().run_in_executor(
                self.decoders, reading.pixels_of, named.data, config, self.limits
            )
            return await asyncio.wrap_future(self.gatherer.submit(pixels, name))
        except Refused as error:
            return error
        except Exception as error:
            return Refused(500, f"The image could not be labelled ({type(error).__name__}).")

    def _name(self, asked: str | None) -> str:
        served = self.shelf.server.artifacts
        if asked is None and len(served) == 1:
            return next(iter(served))
        if asked is None:
            raise Refused(400, f"Name an artefact. There are: {', '.join(served)}.")
        if asked not in served:
            raise Refused(
                404, f"No artefact {asked[:100]!r} is served. There are: {', '.join(served)}."
            )
        return asked

    def _room(self, images: int) -> None:
        """Refuse what the queue has no room for."""
        if images > self.limits.queue:
            raise Refused(413, f"A request may have {self.limits.queue} images, not {images}.")
        if self.inside + images > self.limits.queue:
            raise Refused(
                429,
                f"{self.inside} images wait already, and the limit is {self.limits.queue}.",
                retry_after=1,
            )


async def _disconnected(request: Request) -> None:
    """Return once the client is gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _entry(named: Named, found: Answer | Refused) -> dict[str, Any]:
    if isinstance(found, Answer):
        return found.to_json()
    error = {"status": found.status, "message": found.message}
    return {"artifact": named.artifact, "error": error}


def _say(error: Refused, more: dict[str, Any] | None = None) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    status = 503 if error.status == 499 else error.status
    return JSONResponse(
        {"detail": error.message, **(more or {})}, status_code=status, headers=headers
    )
