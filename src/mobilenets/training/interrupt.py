"""What ends training early: Ctrl-C and SIGTERM, after the current step and not in the middle of it; a process that is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mobilenets.data.progress import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ProcessLostError(RuntimeError):
    """One of several processes is gone, so that the others can't go on."""


class Interrupt:
    """Truthy when called after a signal came; `signal` is its number, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended, such as 130 for Ctrl-C.

        Of several processes all stop where one is told to, and none of them is done.
        """
        return 128 + (self.signal or signal.SIGTERM)


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Note the first signal; a second one ends the program as usual."""
    interrupt, owner = Interrupt(), os.getpid()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        # A terminal signals the processes that read images too; they inherited this function.
        if os.getpid() != owner:
            return
        interrupt.signal = number
        restore()
        say("stopping after this step; once more to stop at once")

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        restore()
