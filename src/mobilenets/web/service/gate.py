"""What holds for every request: who may ask, which headers an answer has, how long a body is still taken, what is counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mobilenets.web.server import HEADERS
from mobilenets.web.service.metrics import Metrics
from mobilenets.web.service.refusal import RefusalError, problem

# An answer of the API is no page: nothing in it is loaded, run or framed.
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
JSON = "application/json"
# Seconds for which the rest of a body that nobody reads is thrown away, so that its client comes to read the answer.
LINGER = 5.0
# Where the client went away before its answer.
UNANSWERED = 499

Log = Callable[[str], None]


@dataclass(frozen=True)
class Who:
    """May ask.

    Args:
        hosts: names that the server is called by, without a port; None takes any. Where it answers this machine alone, a page
            from elsewhere can have its name lead here, and is known by it.
        origins: pages' origins, such as `https://example.org`, besides those that the server itself gives.
    """

    hosts: Collection[str] | None = None
    origins: Sequence[str] = ()

    def check(self, headers: Headers) -> None:
        """Let a request pass.

        Raises:
            RefusalError: it is for another host, or from another page.
        """
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise RefusalError(421, f"this server is not {host[:200] or 'without a name'}")
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            raise RefusalError(
                403, f"pages of {origin[:200]} may not ask: --allow-origin lets them"
            )


def checked_origin(text: str) -> str:
    """An origin as browsers write it.

    Raises:
        ValueError: it is none.

    >>> checked_origin("https://Example.org/")
    'https://example.org'
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(f"an origin is such as https://example.org, not {text}")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def host_of(origin: str) -> str:
    """The name in an origin.

    >>> host_of("https://example.org:8443")
    'example.org'
    """
    return urlsplit(origin).hostname or ""


def _name(host: str) -> str:
    """A `Host` without its port.

    >>> _name("[::1]:8000"), _name("LocalHost")
    ('::1', 'localhost')
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Gate:
    """Wraps an application; paths besides those it knows are counted together."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        who: Who,
        metrics: Metrics,
        paths: Collection[str],
        log: Log | None = None,
    ) -> None:
        self._app = app
        self._who = who
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = _Exchange(scope, receive, send)
        try:
            self._who.check(Headers(scope=scope))
        except RefusalError as refusal:
            await _refuse(refusal, exchange.send)
        else:
            await self._answer(scope, exchange)
        seconds = time.perf_counter() - started
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(exchange.status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        if self._log is not None:
            client = (scope.get("client") or ("?",))[0]
            asked = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
            self._log(
                f"{client} {scope['method']} {asked} {exchange.status} {1000 * seconds:.0f} ms"
            )

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        # Whoever runs the server reads how; whoever asked, that it did.
        except Exception:
            logging.getLogger(__name__).exception("%s failed", scope["path"])
            if exchange.status != UNANSWERED:
                raise
            await _refuse(RefusalError(500, "the server failed: its log tells how"), exchange.send)


class _Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        self._more = b"content-length" in names or b"transfer-encoding" in names
        self._receive = receive
        self._send = send
        self.status = UNANSWERED

    async def receive(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if headers.get("content-type", "").startswith((JSON, "text/plain")):
                headers.setdefault("Content-Security-Policy", NOTHING)
        elif not message.get("more_body", False) and self._more:
            # To close a connection on which more is sent would take the answer from who sends it.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                while self._more:
                    await self.receive()
        except TimeoutError:
            return


async def _refuse(refusal: RefusalError, send: Send) -> None:
    body = problem(refusal.sentence)
    headers = [
        (b"content-type", JSON.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
