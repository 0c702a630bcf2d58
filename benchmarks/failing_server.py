"""A server on loopback that fails as networks do, for the benchmarks beside this file."""

from __future__ import annotations

import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

# Refused; broken off half-way; ended half-way; the same without a length to tell it by; one bit turned over.
FAULTS = (
    "503-twice",
    "503-always",
    "reset-twice",
    "cut-twice",
    "cut-always",
    "cut-no-length",
    "bit-changed",
)


class Handler(BaseHTTPRequestHandler):
    """`/FAULT/TRIAL/PATH` below a folder: files that `broken` finds have the fault, each trial anew."""

    folder: Path
    broken: re.Pattern[str]
    asked: ClassVar[Counter[str]] = Counter()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        fault, _, rest = path.lstrip("/").split("/", 2)
        file = self.folder / rest
        if not file.is_file():
            return self.send_error(404)
        if not self.broken.search(path):
            fault = ""
        elif with_body:
            self.asked[path] += 1
            if fault.endswith("twice") and self.asked[path] > 2:
                fault = ""
        if fault.startswith("503") and with_body:
            return self.send_error(503)
        body = file.read_bytes()
        total, middle = len(body), len(body) // 2
        if fault == "bit-changed":
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        self.send_response(206 if wanted else 200)
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or total), total - 1)
            body = body[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.close_connection = cut = fault.startswith(("reset", "cut"))
        if fault == "cut-no-length":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
        # Clients of S3 want both.
        self.send_header("ETag", f'"{zlib.crc32(rest.encode())}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if with_body and fault.startswith("reset"):
            # What was written shall arrive before the connection breaks.
            time.sleep(0.3)
            hard = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
        return None


@contextmanager
def failing_server(folder: Path, broken: str) -> Iterator[str]:
    """The address of a server in a process of its own, which ends with the block."""
    Handler.folder, Handler.broken = folder, re.compile(broken)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        process = get_context("fork").Process(target=server.serve_forever, daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            process.terminate()
            process.join()
