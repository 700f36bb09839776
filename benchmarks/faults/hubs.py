"""Hubs: fetches that die, files that arrive cut or changed, and a hub that sends on to strangers.

The hub is a server on this machine, with as much of a hub's answers as a fetch asks for.
"""

import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import commands
from benchmarks.faults.artefacts import made, same
from benchmarks.faults.children import NONE, Ending, Fault, in_child
from benchmarks.faults.outcomes import litter, outcome
from vprompt.artifacts import artifact
from vprompt.artifacts.artifact import Artifact

KINDS = ("dies", "cut", "changed", "redirect", "refuses", "killed", "killed", "full")
_REPO, _COMMIT = "you/prompt", "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The files of one repository, and what goes wrong when they are asked for."""

    files: dict[str, bytes]
    kind: str = ""
    victim: str = ""
    at: int = 0
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer without faults."""
        if found := re.fullmatch(rf"/{_REPO}/resolve/\w+/(.+)", path):
            content = self.files.get(found[1])
            if content is None:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            return 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": _COMMIT}, content
        told = [
            {"rfilename": name, "size": len(data), "blobId": _oid(data)}
            for name, data in self.files.items()
        ]
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
            for name, data in self.files.items()
        ]
        body: Any = {"id": _REPO, "sha": _COMMIT, "siblings": told, "tags": []}
        text = json.dumps(tree if "/tree/" in path else body).encode()
        return 200, {"Content-Type": "application/json"}, text


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        """Answer, with a fault where the file is the victim."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub = self.hub
        status, headers, body = hub.answer(path)
        length = len(body)
        if hub.kind and path.endswith(hub.victim) and "/resolve/" in path:
            if hub.kind == "redirect":
                port = self.server.server_address[1]
                headers |= {"Location": f"http://localhost:{port}{path}"}
                status, body, length = 302, b"", 0
            elif hub.kind == "refuses":
                status, body, length = 403, b"", 0
            elif self.command == "GET" and hub.kind == "dies":
                body = body[: hub.at % max(len(body), 1)]
            elif hub.kind == "cut":
                body = body[: hub.at % max(len(body), 1)]
                length = len(body)
            elif hub.kind == "changed" and body:
                place = hub.at % len(body)
                body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


def fetches(folder: Path, seed: int, count: int) -> Counter[str]:
    """Fetch an artefact while something goes wrong, and again when nothing does."""
    commands.warm()
    chance, found, truth = random.Random(seed), Counter[str](), made(0)
    shutil.rmtree(folder, ignore_errors=True)
    artifact.save(truth, folder / "source", run={"tuning": {}})
    files = {path.name: path.read_bytes() for path in (folder / "source").iterdir()}
    hub = Hub(files)
    with _serving(hub) as address:
        life = _pull(folder, address)
        assert life.code == 0, life.said
        for number in range(count):
            for name in ("cache", "library", "copy"):
                shutil.rmtree(folder / name, ignore_errors=True)
            hub.kind, hub.at = KINDS[number % len(KINDS)], chance.randrange(2**20)
            hub.victim = chance.choice(sorted(files))
            fault = Fault()
            if hub.kind == "killed":
                fault = Fault(signal.SIGKILL, change=chance.randrange(max(life.changes, 1)))
            elif hub.kind == "full":
                fault = Fault(full_at=chance.randrange(max(life.changes, 1)))
            found[outcome(lambda: _fetched(folder, address, hub, fault, truth))] += 1  # noqa: B023
            left = litter([folder / "cache", folder / "copy"])
            if left:
                print(f"litter of a fetch that {hub.kind}: {left}", file=sys.stderr)
            found["litter"] += bool(left)
    return +found


def _fetched(folder: Path, address: str, hub: Hub, fault: Fault, truth: Artifact) -> bool:
    first, kind = _pull(folder, address, fault), hub.kind
    hub.kind = ""
    if first.crashed:
        raise RuntimeError(f"{kind}, {fault}: {first.said[-2000:]}")
    if kind == "redirect" and (first.code == 0 or "sends on to localhost" not in first.said):
        raise RuntimeError(f"sent on to another host: {first.code}, {first.said[-500:]}")
    if first.code == 0 and not same(artifact.load(folder / "copy"), truth):
        return False
    if first.code == 0:
        return True
    again = _pull(folder, address)
    if again.code != 0 and (folder / "copy").exists():  # it was there before it was killed
        return same(artifact.load(folder / "copy"), truth)
    if again.code != 0:
        raise RuntimeError(f"again after {kind}, {fault}: {again.said[-2000:]}")
    return same(artifact.load(folder / "copy"), truth)


def _pull(folder: Path, address: str, fault: Fault = NONE) -> Ending:
    def work() -> None:
        from huggingface_hub import constants

        from vprompt import cli

        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            os.environ.pop(name, None)
            os.environ.pop(name.lower(), None)
        os.environ |= {"HF_ENDPOINT": address, "VPROMPT_CACHE": str(folder / "cache")}
        constants.HF_HUB_CACHE = str(folder / "library")
        constants.HF_HUB_OFFLINE = False
        constants.HF_HUB_DISABLE_XET = True
        sys.argv = ["vprompt", "share", "pull", f"hf-hub:{_REPO}", "-q"]
        sys.argv += ["--output", str(folder / "copy")]
        cli.main()

    return in_child(work, fault, below=folder)


@contextmanager
def _serving(hub: Hub) -> Iterator[str]:
    """Serve on a free port of this machine alone."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _oid(data: bytes) -> str:
    """Return the number that git gives a file."""
    return hashlib.sha1(b"blob %d\x00" % len(data) + data).hexdigest()
