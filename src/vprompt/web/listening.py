"""Listening: a port is taken, served, and given back without losing an answer."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from vprompt.core.errors import VPromptError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Server(uvicorn.Server):
    """Uvicorn, whose end by a signal is an ordinary end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal: no new requests, the answers of those that are there, then the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            for each in before:
                signal.signal(each, self.handle_exit)
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises VPromptError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(1024)
    except (OSError, OverflowError) as error:
        made.close()
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise VPromptError(
            f"Cannot listen at {host}, port {port}: {reason}. Choose another --port, such as "
            f"{port + 1 if 0 < port < 65000 else 8000}, or 0 for any that is free."
        ) from None
    return made


def address(bound: socket.socket) -> str:
    """Return what a person types to get there."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server(app: FastAPI, *, seconds: float) -> uvicorn.Server:
    """Return a server that, told to stop, gives requests so many seconds to be answered."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(seconds)),
        timeout_keep_alive=15,
        server_header=False,
    )
    return _Server(config)
