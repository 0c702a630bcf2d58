"""What a call costs in energy, where the system tells it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Linux's counters of whole processor packages, in microjoules.
COUNTERS = Path("/sys/class/powercap")


def joules(
    call: Callable[[], object], *, seconds: float, counters: Path = COUNTERS
) -> float | None:
    """Joules of one call, everything else on the processor included; None where no counter can be read.

    Args:
        seconds: how long to call again and again.
        counters: the folder of Linux's power capping framework.
    """
    # Other domains, such as the whole system's, count a package once more.
    files = [
        name.with_name("energy_uj")
        for name in sorted(counters.glob("intel-rapl:?/name"))
        if name.read_text().startswith("package")
    ]
    before = _read(files)
    if before is None:
        return None
    calls, end = 0, time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < end:
        call()
        calls += 1
    after = _read(files)
    # A counter that has run over tells nothing.
    if after is None or any(b < a for a, b in zip(before, after, strict=True)):
        return None
    return (sum(after) - sum(before)) / 1e6 / calls


def _read(files: Sequence[Path]) -> list[int] | None:
    try:
        return [int(file.read_text()) for file in files] or None
    except OSError:
        return None
