"""The family measured on this device, for the picker; and how good what lies between is."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mobilenets.architecture.network import MobileNet
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost.latency import Grid, LatencyProfile, processor
from mobilenets.data.progress import progress
from mobilenets.deploy.exportable import Exportable, Int8
from mobilenets.deploy.target import INT8, TARGETS, Target
from mobilenets.runtimes.model import Model, Runtime, find_runtime
from mobilenets.runtimes.timing import time_calls

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SIDES = (128, 160, 192, 224)
# Widths at which no layer has a multiple of 4 channels.
ODD_WIDTHS, ODD_SIDES = (0.31, 0.49, 0.74, 0.98), (128, 224)


def find_profiled(runtime: str, precision: str) -> tuple[Runtime, Target]:
    """A runtime that can be profiled, and the target that writes its files.

    Raises:
        ValueError: there is none of that name.
        ImportError: it, or what writes its files, is not installed; it says how to install it.
    """
    targets = {target.runtime: target for target in TARGETS.values() if target.runtime}
    if runtime not in targets:
        raise ValueError(f"--runtime is {', '.join(targets)}, not {runtime!r}")
    targets[runtime].check_installed(precision)
    return find_runtime(runtime), targets[runtime]


def measure_profile(
    runtime: str, precision: str, threads: int, batch: int, seconds: float
) -> LatencyProfile:
    """Time the 16 published sizes, and eight whose channels fill no blocks, with initial weights, which take as long as any.

    Args:
        seconds: of timing, exports aside.

    Raises:
        ValueError, ImportError: as of `find_profiled`.
    """
    found, _ = find_profiled(runtime, precision)
    specs = [
        MobileNetSpec(width, side)
        for widths, sides in ((WIDTHS, SIDES), (ODD_WIDTHS, ODD_SIDES))
        for width in widths
        for side in sides
    ]
    times = measure(specs, runtime, precision, threads, batch, seconds)
    published = len(WIDTHS) * len(SIDES)
    return LatencyProfile(
        device=processor(),
        runtime=runtime,
        threads=threads or os.cpu_count() or 1,
        batch=batch,
        precision=precision,
        versions={name: version(name) for name in (found.package, "mobilenets")},
        widths=WIDTHS,
        sides=SIDES,
        milliseconds=_rows(times[:published], len(SIDES)),
        odd=Grid(
            widths=ODD_WIDTHS,
            sides=ODD_SIDES,
            milliseconds=_rows(times[published:], len(ODD_SIDES)),
        ),
    )


def _rows(times: Sequence[float], length: int) -> tuple[tuple[float, ...], ...]:
    starts = range(0, len(times), length)
    return tuple(tuple(times[start : start + length]) for start in starts)


def check_profile(
    profile: LatencyProfile, count: int, seconds: float
) -> list[tuple[str, float, float]]:
    """Measure models that lie between: each one's name, interpolated and measured milliseconds."""
    drawn = random.Random(0)
    specs = [
        MobileNetSpec(
            round(drawn.uniform(WIDTHS[0], WIDTHS[-1]), 2), drawn.randrange(SIDES[0], SIDES[-1])
        )
        for _ in range(count)
    ]
    times = measure(
        specs, profile.runtime, profile.precision, profile.threads, profile.batch, seconds
    )
    return [(str(spec), profile.ms(spec), ms) for spec, ms in zip(specs, times, strict=True)]


def measure(
    specs: Sequence[MobileNetSpec],
    runtime: str,
    precision: str,
    threads: int,
    batch: int,
    seconds: float,
) -> list[float]:
    """Median milliseconds of a call of each, in turns."""
    reader, writer = find_profiled(runtime, precision)
    calls = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("exporting", len(specs), "models") as advance,
    ):
        for number, spec in enumerate(specs):
            path = Path(folder) / str(number) / writer.file
            path.parent.mkdir()
            model = Exportable.of_network(MobileNet(spec).eval(), spec)
            if precision == INT8:
                model = model.quantised(Int8(images_NCHW=_pictures(spec)))
            writer.write(model, path)
            images_NCHW = np.zeros(model.example(batch).shape, np.float32)
            calls[str(number)] = _Call(reader.open(path, threads), images_NCHW)
            advance(1)
    timings = time_calls(calls, seconds=seconds)
    # To the nanosecond, so that a limit which is one of these times is met by it.
    return [round(timings[str(number)].median_ms, 6) for number in range(len(specs))]


def _pictures(spec: MobileNetSpec) -> torch.Tensor:
    """Something with ranges for int8 to take."""
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, spec.input_channels, 4, 4, generator=drawn) * 2 - 1
    return F.interpolate(coarse, (spec.height, spec.across), mode="bilinear")


class _Call:
    def __init__(self, model: Model, images_NCHW: np.ndarray) -> None:
        self._model, self._images_NCHW = model, images_NCHW

    def __call__(self) -> None:
        self._model.run(self._images_NCHW)
