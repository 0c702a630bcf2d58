"""How often something was begun and not ended, kept where it outlives whoever began it; in a file of its own, since its process needs no torch."""

from __future__ import annotations

from collections import Counter


class Tries:
    """Counts what is begun until it ends.

    >>> tries = Tries()
    >>> [tries.begin(what) for what in ("a.jpg", "b.jpg", "a.jpg")]
    [0, 0, 1]
    >>> tries.end("a.jpg")
    >>> tries.begin("a.jpg")
    0
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """How often it was begun before, and did not end."""
        self._begun[what] += 1
        return self._begun[what] - 1

    def end(self, what: str) -> None:
        """It killed nobody: who begins it again does so for another's sake."""
        del self._begun[what]
