"""How fast models are on this machine: in turns, warmed, each with what it takes to load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.progress import progress
from mobilenets.deploy.energy import joules
from mobilenets.deploy.subjects import Subject
from mobilenets.runtimes.model import Model
from mobilenets.runtimes.timing import Timing, time_calls


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in one runtime, with one batch size and one number of threads.

    Times are of one call: the median, and the range of the middle half. `load_ms` is what a new process
    takes until the model is ready, imports included, and `peak_mb` its most memory after one
    call. What could not be measured is None.
    """

    name: str
    runtime: str
    batch: int
    threads: int
    median_ms: float
    lower_ms: float
    upper_ms: float
    calls: int
    images_per_second: float
    load_ms: float | None
    peak_mb: float | None
    bytes: int | None
    millijoules_per_image: float | None
    top1: float | None
    top1_source: str

    def to_dict(self) -> dict[str, Any]:
        """One row of `benchmark --json`."""
        return asdict(self)


def benchmark(
    subjects: Sequence[Subject], batches: Sequence[int], threads: Sequence[int], seconds: float
) -> list[Row]:
    """Time every model with every batch size in turns, and so with each number of threads.

    Args:
        seconds: how long the timing itself may take; it takes five rounds at least.

    Raises:
        ValueError: a model can't be read, or does not take images of one size.
        ImportError: a runtime is not installed.
    """
    pairs = list(product(subjects, threads))
    first: dict[tuple[Subject, int], dict[str, float | None]] = {}
    calls: dict[tuple[Subject, int, int], _Call] = {}
    with progress("loading", len(pairs), "models") as advance:
        for subject, count in pairs:
            for batch in batches:
                # One each: a runtime may get ready anew for another batch size.
                calls[subject, batch, count] = _Call(subject.open(count), batch)
            first[subject, count] = _first_call(subject, count)
            advance(1)
    rows: dict[tuple[Subject, int, int], Row] = {}
    for count in threads:
        # Changing the number of threads takes time of its own.
        here = {key: call for key, call in calls.items() if key[2] == count}
        timings = time_calls(
            {str(number): call for number, call in enumerate(here.values())},
            seconds=seconds / len(threads),
        )
        for (key, call), timing in zip(here.items(), timings.values(), strict=True):
            rows[key] = _row(key, timing, first[key[0], count], call)
    return [rows[key] for key in product(subjects, batches, threads)]


class _Call:
    """A batch of noise through a model."""

    def __init__(self, model: Model, batch: int) -> None:
        self._model = model
        random = np.random.default_rng(0)
        self._images: NDArray[np.float32] = random.standard_normal(
            (batch, *model.input_shape), dtype=np.float32
        )

    def __call__(self) -> None:
        self._model.run(self._images)


def _row(
    key: tuple[Subject, int, int], timing: Timing, first: dict[str, float | None], call: _Call
) -> Row:
    subject, batch, threads = key
    spent = joules(call, seconds=0.5)
    return Row(
        name=subject.name,
        runtime=subject.runtime,
        batch=batch,
        threads=threads,
        median_ms=timing.median_ms,
        lower_ms=timing.lower_ms,
        upper_ms=timing.upper_ms,
        calls=timing.calls,
        images_per_second=1000 * batch / timing.median_ms,
        load_ms=first["load_ms"],
        peak_mb=first["peak_mb"],
        bytes=subject.bytes,
        millijoules_per_image=None if spent is None else 1000 * spent / batch,
        top1=subject.top1,
        top1_source=subject.top1_source,
    )


def _first_call(subject: Subject, threads: int) -> dict[str, float | None]:
    """Load and call once in a process that has done nothing else."""
    command = [sys.executable, "-P", "-m", "mobilenets.deploy.first_call"]
    asked = json.dumps({"subject": asdict(subject), "threads": threads})
    done = subprocess.run([*command, asked], check=False, capture_output=True, text=True)
    if done.returncode:
        return {"load_ms": None, "peak_mb": None}
    answer: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    return answer
