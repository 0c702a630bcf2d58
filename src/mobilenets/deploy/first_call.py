"""A process that loads one model and calls it once: `python -m mobilenets.deploy.first_call JSON`.

It writes the milliseconds that this took, imports included, and the most memory. Another process can't
tell: its libraries are loaded, and its memory holds more.
"""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import json  # noqa: E402  (what is imported from here on is part of what is timed)
import re  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from mobilenets.runtimes.model import RUNTIMES, Model  # noqa: E402


def main() -> None:
    """Answer one question."""
    asked = json.loads(sys.argv[1])
    model = _open(asked["subject"], asked["threads"])
    ready = 1000 * (time.perf_counter() - _STARTED)
    model.run(np.zeros((1, *model.input_shape), dtype=np.float32))
    sys.stdout.write(json.dumps({"load_ms": ready, "peak_mb": _peak_mb()}) + "\n")


def _open(subject: dict[str, Any], threads: int) -> Model:
    for runtime in RUNTIMES:
        if runtime.name == subject["runtime"]:
            # A file needs its runtime alone, and no PyTorch.
            return runtime.open(Path(subject["reference"]), threads)
    from mobilenets.deploy.subjects import Subject

    return Subject(**subject).open(threads)


def _peak_mb() -> float:
    # `ru_maxrss` of a new process begins with what its parent had.
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
