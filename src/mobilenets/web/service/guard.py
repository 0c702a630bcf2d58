"""Connections that may neither be slow nor many: what no application sees, since it is called once a request's headers are there."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mobilenets.web.server import HEADERS
from mobilenets.web.service.gate import JSON, NOTHING
from mobilenets.web.service.limits import Limits
from mobilenets.web.service.metrics import Metrics
from mobilenets.web.service.refusal import problem

# Of what a chunked body brings besides its content.
FRAMING = 2


def guarded(limits: Limits, metrics: Metrics) -> type[HttpToolsProtocol]:
    """The protocol that uvicorn speaks, with a clock on each connection."""

    class Guarded(HttpToolsProtocol):
        """The clock runs from a connection's or a request's first byte to the request's last, and while a client reads nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._clock: asyncio.TimerHandle | None = None
            self._write_clock: asyncio.TimerHandle | None = None
            self._received = 0
            self._in_head = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            metrics.connections.set(len(self.connections))
            if len(self.connections) > limits.connections:
                self._refuse(503, "too many connections: try again in a second")
            else:
                self._wind()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            metrics.connections.set(len(self.connections))
            self._stop()
            self._go_on_writing()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._clock is None and (self.cycle is None or self.cycle.response_complete):
                self._wind()
            self._received += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._in_head and self._received > limits.head_bytes:
                self._refuse(431, f"more than {limits.head_bytes} bytes of headers")
            elif (
                self._received > FRAMING * limits.body_bytes + limits.head_bytes
                and not self._answered
            ):
                self._refuse(413, f"more than {limits.body_bytes / 1e6:g} MB in one request")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._in_head = False

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._stop()
            self._received = 0
            self._in_head = True

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_clock is None:
                self._write_clock = self.loop.call_later(limits.seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._go_on_writing()

        def send_400_response(self, msg: str) -> None:
            del msg
            self._refuse(400, "this is no HTTP request")

        @property
        def _answered(self) -> bool:
            """Whether an answer to what is being sent has begun."""
            return not self._in_head and self.cycle is not None and self.cycle.response_started

        def _wind(self) -> None:
            self._stop()
            self._clock = self.loop.call_later(limits.seconds, self._too_slow)

        def _stop(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _go_on_writing(self) -> None:
            if self._write_clock is not None:
                self._write_clock.cancel()
                self._write_clock = None

        def _too_slow(self) -> None:
            self._clock = None
            if self._answered:
                self.transport.close()
            elif not self.transport.is_closing():
                self._refuse(408, f"a request is to be sent within {limits.seconds:g} seconds")

        def _refuse(self, status: int, sentence: str) -> None:
            """Answer in the application's place, and close."""
            self._stop()
            body = problem(sentence)
            headers = {
                "Content-Type": JSON,
                "Content-Length": str(len(body)),
                "Connection": "close",
                "Content-Security-Policy": NOTHING,
                **HEADERS,
            } | ({"Retry-After": "1"} if status == 503 else {})
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
            self.transport.close()
            metrics.requests.labels("", str(status)).inc()

    return Guarded
