"""Served: small artefacts, and a real server on a free port of this machine."""

import contextlib
import http.client
import io
import json
import threading
import time
import uuid
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

torch.set_num_threads(1)
NAMES = ("ash", "birch", "cedar")


def save_artefact(backbone, folder, seed, *, deep=False, classes=("left", "middle", "right")):
    """Write an artefact with a random prompt and head."""
    from vprompt.artifacts.artifact import Artifact, make_config, save
    from vprompt.models.heads import Head
    from vprompt.prompts.prompt import Prompt, place

    randomness = torch.Generator().manual_seed(seed)
    blocks = place(2, backbone.depth, deep=deep)
    tokens = torch.randn(len(blocks), backbone.dim, generator=randomness)
    prompt = Prompt(tokens, blocks, not deep)
    weight = torch.randn(len(classes), backbone.feature_dim, generator=randomness)
    head = Head(weight, torch.zeros(len(classes)))
    facts = {"task": {"name": f"task {seed}"}, "metrics": {"acc1": 0.875}}
    config = make_config(backbone, prompt, tuple(classes), None, head, **facts)
    artifact = Artifact(prompt, head, torch.zeros(backbone.feature_dim), config, f"# Card {seed}\n")
    save(artifact, folder, overwrite=True)


def png(seed=0, size=(40, 37)):
    """Return the bytes of an image file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Client:
    """Speaks HTTP to one address, one connection a request."""

    def __init__(self, address):
        self.address, self.host = address, urlsplit(address).netloc

    def ask(self, method, path, body=None, headers=None):
        """Return status, headers and body."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def json(self, path, **more):
        """Return what an address says."""
        return json.loads(self.ask("GET", path, **more)[2])

    def send(self, *files, artifact=(), headers=None):
        """Post files as a form and return status and JSON."""
        edge, parts = uuid.uuid4().hex, []
        for row, file in enumerate(files):
            head = f'name="images"; filename="{row}.png"\r\nContent-Type: image/png'
            parts.append((head, file))
        parts += [('name="artifact"', name.encode()) for name in artifact]
        body = b"".join(
            f"--{edge}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
            for head, data in parts
        )
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}", **(headers or {})}
        status, seen, answer = self.ask("POST", "/predict", body + f"--{edge}--\r\n".encode(), kind)
        self.headers = seen
        return status, json.loads(answer)


@contextlib.contextmanager
def serving(pools, backbone, *, page=False, limits=None, **settings):
    """Yield a client of a running server; `client.shelf` is what it serves."""
    from vprompt.web import application, listening, pages
    from vprompt.web.limits import Limits
    from vprompt.web.shelf import Shelf

    said = []
    shelf = Shelf(pools, model=backbone, say=said.append)
    app = application.make(
        shelf, Limits(**(limits or {})), precision="fp32", watch_seconds=0.1, **settings
    )
    if page:
        pages.add(app, pools)
    bound = listening.bind("127.0.0.1", 0)
    server = listening.server(app, seconds=5.0)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]))
    thread.start()
    client = Client(listening.address(bound))
    client.shelf, client.said, client.app, client.server = shelf, said, app, server
    try:
        until = time.monotonic() + 30
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield client
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
