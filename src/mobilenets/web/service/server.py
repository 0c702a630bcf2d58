"""An application on a port of this machine, until it is told to end."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mobilenets.web.server import address_of, not_to_be_had
from mobilenets.web.service.guard import guarded
from mobilenets.web.service.limits import Limits
from mobilenets.web.service.metrics import Metrics


def serve(
    app: FastAPI,
    host: str,
    port: int,
    limits: Limits,
    metrics: Metrics,
    started: Callable[[str], None],
) -> None:
    """Answer until Ctrl-C or SIGTERM, and then what was asked before.

    Args:
        port: 0 takes a free one.
        started: is called with the address once it answers.

    Raises:
        ValueError: the address can't be had.
    """
    with listening(host, port) as listener, _ended_well():
        server_of(app, limits, metrics, lambda: started(address_of(listener))).run([listener])


def server_of(
    app: FastAPI, limits: Limits, metrics: Metrics, started: Callable[[], None]
) -> uvicorn.Server:
    """uvicorn, with connections that may not be slow; who runs it gives it its socket."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    return Server(
        uvicorn.Config(
            app,
            http=guarded(limits, metrics),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=round(limits.seconds) or 1,
            timeout_graceful_shutdown=round(limits.seconds) + 1,
        )
    )


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections.

    Raises:
        ValueError: the address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise not_to_be_had(host, port, error) from None
    with listener:
        yield listener


@contextmanager
def _ended_well() -> Iterator[None]:
    """The signal that ended uvicorn is sent once more by itself: by then there is nothing left to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(number: int, frame: FrameType | None) -> None:
        del number, frame

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
