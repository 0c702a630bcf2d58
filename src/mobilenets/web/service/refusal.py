"""A request that is not answered, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping


class RefusalError(Exception):
    """Carries an HTTP status and one sentence for the client."""

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


class GoneError(Exception):
    """The client went away before its answer."""


def busy(sentence: str) -> RefusalError:
    """Too much is asked for just now."""
    return RefusalError(503, sentence, {"Retry-After": "1"})


def problem(sentence: str) -> bytes:
    """The body of every error.

    >>> problem("there is no such page")
    b'{"error": "there is no such page"}'
    """
    return json.dumps({"error": sentence}, ensure_ascii=False).encode("utf-8", "replace")
