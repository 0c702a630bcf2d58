"""Progress for anything longer than two seconds: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET_SECONDS = 2.0
LINE_SECONDS = 30.0


class Advance(Protocol):
    """Called with the units just done, and perhaps with a word on how they went."""

    def __call__(self, units: int, detail: str = "") -> None: ...


def speaks(*, each_machine: bool = False) -> bool:
    """Whether this process may write to people: of those that `torchrun` starts, one does, or one on each machine."""
    return os.environ.get("LOCAL_RANK" if each_machine else "RANK", "0") == "0"


def say(message: str, *, each_machine: bool = False) -> None:
    """Write a line for people to standard error, where it never mixes with JSON.

    Args:
        each_machine: of several processes, not the first alone says it, who may be the one that is gone.
    """
    if speaks(each_machine=each_machine):
        sys.stderr.write(message.rstrip() + "\n")
        sys.stderr.flush()


@contextmanager
def progress(what: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
    """Show how far a loop is, with speed and time left, on standard error.

    Of several processes that `torchrun` started, the first one speaks for all.

    The block gets a function to call with the number of units just done. Nothing is shown for
    loops that end within two seconds, nor for those whose total is not known, which is None.
    """
    if total is None or not speaks():
        yield _silent
        return
    if sys.stderr.isatty():
        with _bar(what, total, unit) as advance_bar:
            yield advance_bar
        return
    started = last = time.monotonic()
    done = 0

    def advance(units: int, detail: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last >= LINE_SECONDS and 0 < done < total:
            last, speed = now, done / (now - started)
            left = format_seconds((total - done) / speed)
            extra = f" ({detail})" if detail else ""
            sys.stderr.write(
                f"{what}: {done:,} of {total:,} {unit}, {speed:,.0f}/s, {left} left{extra}\n"
            )
            sys.stderr.flush()

    yield advance


def _silent(units: int, detail: str = "") -> None:
    del units, detail


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=total, speed="", detail="")
    started = time.monotonic()
    shown = False

    def advance(units: int, detail: str = "") -> None:
        nonlocal shown
        seconds = time.monotonic() - started
        done = bar.tasks[0].completed + units
        speed = f"{done / max(seconds, 1e-9):,.0f}/s"
        bar.update(task, advance=units, speed=speed, detail=detail)
        if not shown and seconds > QUIET_SECONDS:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


def format_seconds(seconds: float) -> str:
    """Seconds for people.

    >>> format_seconds(75), format_seconds(4000)
    ('1:15', '1:06:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
