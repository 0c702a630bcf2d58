"""The images of a request, read no further than the limits go, and never to a disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from mobilenets.web.service.batching import Upload
from mobilenets.web.service.limits import Limits
from mobilenets.web.service.refusal import GoneError, RefusalError, busy

FIELD = "images"
FORM = "multipart/form-data"
RAW = "application/octet-stream"
KINDS = f"send {FORM} with parts named {FIELD}, or one image as image/jpeg or {RAW}"


class Desk:
    """Where bodies come in; counts what is held of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """The images of a request, held as long as the block lasts.

        Raises:
            RefusalError: it is too large, of another kind or holds no images, or too much is held already.
            GoneError: the client went away.
        """
        given = request.headers.get("content-type", "")
        kind, options = parse_options_header(given)
        plain = kind.decode("latin-1")
        if plain != FORM and plain != RAW and not plain.startswith("image/"):
            raise RefusalError(415, f"{plain or 'a body of no kind'} is not read: {KINDS}")
        collector = _Form(options.get(b"boundary"), self._limits) if plain == FORM else _Body()
        taken = 0
        try:
            self._check_length(request.headers.get("content-length"))
            async for chunk in request.stream():
                taken += len(chunk)
                self._held += len(chunk)
                if taken > self._limits.body_bytes:
                    raise self._too_large()
                if self._held > self._limits.held_bytes:
                    raise busy("too many images are sent at once: try again in a second")
                collector.write(chunk)
            yield collector.uploads()
        except ClientDisconnect:
            raise GoneError from None
        finally:
            self._held -= taken

    def _check_length(self, length: str | None) -> None:
        if length is not None and length.isdecimal() and int(length) > self._limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> RefusalError:
        megabytes = self._limits.body_bytes / 1e6
        return RefusalError(413, f"more than {megabytes:g} MB in one request")


class _Body:
    """One image, and nothing else."""

    def __init__(self) -> None:
        self._content = bytearray()

    def write(self, chunk: bytes) -> None:
        self._content += chunk

    def uploads(self) -> list[Upload]:
        return [Upload(None, bytes(self._content))]


class _Form:
    """Parts named `images`."""

    def __init__(self, boundary: bytes | None, limits: Limits) -> None:
        if not boundary:
            raise RefusalError(400, f"{FORM} has no boundary")
        self._limits = limits
        self._uploads: list[Upload] = []
        self._ended = False
        self._field, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name: str | None = None
        self._content = bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_ends,
                    "on_end": self._all_ends,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from None

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from None

    def uploads(self) -> list[Upload]:
        if not self._ended:
            raise RefusalError(400, f"{FORM} ends before its last boundary")
        if not self._uploads:
            raise RefusalError(422, f"the form has no part named {FIELD}")
        return self._uploads

    def _part_begins(self) -> None:
        if len(self._uploads) == self._limits.images:
            raise RefusalError(413, f"more than {self._limits.images} images in one request")
        self._disposition = b""
        self._content = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        part = options.get(b"name", b"").decode("utf-8", "replace")
        if part != FIELD:
            raise RefusalError(
                422, f"the part {part!r} is not known: images go in parts named {FIELD}"
            )
        name = options.get(b"filename")
        self._name = None if name is None else name.decode("utf-8", "replace")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += memoryview(data)[start:end]

    def _part_ends(self) -> None:
        self._uploads.append(Upload(self._name, bytes(self._content)))
        self._content = bytearray()

    def _all_ends(self) -> None:
        self._ended = True


def _malformed(error: Exception) -> RefusalError:
    return RefusalError(400, f"{FORM} is malformed ({' '.join(str(error).split())})")
