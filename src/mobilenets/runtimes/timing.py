"""Timing calls against each other: warmed, interleaved, with median and spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mobilenets.data.progress import progress

FEWEST_ROUNDS = 5
# Seconds. Threads of a runtime go on spinning for a while after a call, and would take the cores from the next.
TURN, PAUSE = 0.05, 0.02
MOST_CALLS = 100


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median, and the range that holds the middle half."""

    median_ms: float
    lower_ms: float
    upper_ms: float
    calls: int

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ms ({self.lower_ms:.2f} to {self.upper_ms:.2f})"


def time_once(call: Callable[[], object]) -> float:
    """Milliseconds of one call.

    >>> time_once(lambda: None) < 1000
    True
    """
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def time_calls(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 2.0, warm_up: int = 5
) -> dict[str, Timing]:
    """Time functions in turns of several calls, so that what else the machine does hits all of them alike.

    The first call of a turn counts only where it is the only one: what the others left in the caches is not its fault.

    Args:
        calls: functions by name; each must wait for its own result.
        seconds: how long all of them together may take, the warm-up aside.

    Raises:
        ValueError: the seconds are no number.

    >>> time_calls({"nothing": lambda: None}, seconds=0.01)["nothing"].calls >= 5
    True
    """
    if not math.isfinite(seconds):
        raise ValueError(f"timing takes a number of seconds, not {seconds}")
    for call in calls.values():
        for _ in range(warm_up):
            call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    rounds = shown = 0
    with progress("timing", math.ceil(seconds), "seconds") as advance:
        while rounds < FEWEST_ROUNDS or time.perf_counter() < begun + seconds:
            for name, call in calls.items():
                spent[name] += _turn(call, pause=PAUSE if len(calls) > 1 else 0.0)
            rounds += 1
            gone = min(int(time.perf_counter() - begun), math.ceil(seconds))
            advance(gone - shown)
            shown = gone
    timings = {}
    for name, values in spent.items():
        lower, median, upper = statistics.quantiles(values, n=4)
        timings[name] = Timing(median, lower, upper, len(values))
    return timings


def _turn(call: Callable[[], object], pause: float) -> list[float]:
    """Milliseconds of each call of one turn."""
    time.sleep(pause)
    spent: list[float] = []
    over = time.perf_counter() + TURN
    while not spent or (len(spent) < MOST_CALLS and time.perf_counter() < over):
        spent.append(time_once(call))
    return spent[1:] or spent
