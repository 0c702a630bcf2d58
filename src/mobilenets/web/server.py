"""Pages on this machine: a small server that gives what it was handed, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Self
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The first two let a page use threads of WebAssembly; all keep it to itself.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".onnx": "application/octet-stream",
}


@dataclass(frozen=True)
class Page:
    """What an address gives."""

    kind: str
    content: bytes

    @classmethod
    def named(cls, name: str, content: bytes) -> Self:
        """A file, of the kind that its name tells.

        >>> Page.named("app.js", b"").kind
        'text/javascript; charset=utf-8'
        """
        return cls(KINDS[PurePosixPath(name).suffix], content)


def serve_pages(
    pages: Mapping[str, Page], host: str, port: int, started: Callable[[str], None]
) -> None:
    """Answer for pages until Ctrl-C.

    Args:
        pages: by their path, such as `/`.
        port: 0 takes a free one.
        started: is called with the address once it answers.

    Raises:
        ValueError: the address can't be had.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, format: str, *args: object) -> None:
            """Who looks at the pages is nobody's business."""

        def _answer(self, *, body: bool) -> None:
            page = pages.get(urlsplit(self.path).path)
            found = page or Page("text/plain; charset=utf-8", b"there is no such page\n")
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", found.kind)
            self.send_header("Content-Length", str(len(found.content)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(found.content)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise not_to_be_had(host, port, error) from None
    with server:
        started(address_of(server.socket))
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def not_to_be_had(host: str, port: int, error: OSError | OverflowError) -> ValueError:
    """Why no server can be at an address, in one sentence."""
    reason = getattr(error, "strerror", None) or str(error)
    return ValueError(
        f"{host} port {port} can't be had ({reason}): another --host, or --port 0 for a free one"
    )


def address_of(listener: socket.socket) -> str:
    """Where a socket that listens is reached."""
    host, port, *_ = listener.getsockname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"
