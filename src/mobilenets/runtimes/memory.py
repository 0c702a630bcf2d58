"""The most memory that a process has had."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mb() -> float:
    """Of this process so far, in units of 2^20 bytes."""
    # `ru_maxrss` of a new process begins with what its parent had.
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 1024
    # Not there on Windows.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
