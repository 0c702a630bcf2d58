"""A process that loads one model and calls it once: `python -m mobilenets.deploy.first_call JSON`.

It writes the milliseconds that this took, imports included, and the most memory. Another process can't
tell: its libraries are loaded, and its memory holds more.
"""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import json  # noqa: E402  (what is imported from here on is part of what is timed)
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from mobilenets.runtimes.memory import peak_mb  # noqa: E402
from mobilenets.runtimes.model import RUNTIMES, Model  # noqa: E402


def main() -> None:
    """Answer one question."""
    asked = json.loads(sys.argv[1])
    model = _open(asked["subject"], asked["threads"])
    ready = 1000 * (time.perf_counter() - _STARTED)
    model.run(np.zeros((1, *model.input_shape), dtype=np.float32))
    sys.stdout.write(json.dumps({"load_ms": ready, "peak_mb": peak_mb()}) + "\n")


def _open(subject: dict[str, Any], threads: int) -> Model:
    for runtime in RUNTIMES:
        if runtime.name == subject["runtime"]:
            # A file needs its runtime alone, and no PyTorch.
            return runtime.open(Path(subject["reference"]), threads)
    from mobilenets.deploy.subjects import Subject

    return Subject(**subject).open(threads)


if __name__ == "__main__":
    main()
