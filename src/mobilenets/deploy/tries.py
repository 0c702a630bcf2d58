"""How often something was begun, kept where it outlives whoever began it; in a file of its own, since its process needs no torch."""

from __future__ import annotations

from collections import Counter


class Tries:
    """Counts what is begun.

    >>> tries = Tries()
    >>> [tries.begin(what) for what in ("a.jpg", "b.jpg", "a.jpg")]
    [0, 0, 1]
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """How often it was begun before."""
        self._begun[what] += 1
        return self._begun[what] - 1
