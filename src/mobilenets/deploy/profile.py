"""The family measured on this device, for the picker; and how good what lies between is."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mobilenets.architecture.network import MobileNet
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost.latency import MEASURED, LatencyProfile, processor
from mobilenets.data.progress import progress
from mobilenets.deploy import onnx
from mobilenets.deploy.exportable import Exportable
from mobilenets.runtimes.onnx import OnnxModel
from mobilenets.runtimes.timing import time_calls

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SIDES = (128, 160, 192, 224)


def measure_profile(threads: int, batch: int, seconds: float) -> LatencyProfile:
    """Time the 16 published sizes with initial weights, which take as long as any.

    Args:
        seconds: of timing, exports aside.
    """
    specs = [MobileNetSpec(width, side) for width in WIDTHS for side in SIDES]
    times = measure(specs, threads, batch, seconds)
    return LatencyProfile(
        device=processor(),
        runtime=MEASURED,
        threads=threads or os.cpu_count() or 1,
        batch=batch,
        precision="fp32",
        versions={name: version(name) for name in (MEASURED, "mobilenets")},
        widths=WIDTHS,
        sides=SIDES,
        milliseconds=tuple(
            tuple(times[row * len(SIDES) : (row + 1) * len(SIDES)]) for row in range(len(WIDTHS))
        ),
    )


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
    times = measure(specs, profile.threads, profile.batch, seconds)
    return [(str(spec), profile.ms(spec), ms) for spec, ms in zip(specs, times, strict=True)]


def measure(
    specs: Sequence[MobileNetSpec], threads: int, batch: int, seconds: float
) -> list[float]:
    """Median milliseconds of a call of each, in turns."""
    calls = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("exporting", len(specs), "models") as advance,
    ):
        for number, spec in enumerate(specs):
            path = Path(folder) / f"{number}.onnx"
            shape = (batch, spec.input_channels, spec.height, spec.across)
            onnx.write(Exportable.of_network(MobileNet(spec).eval(), spec), path)
            calls[str(number)] = _Call(OnnxModel(path, threads), np.zeros(shape, np.float32))
            advance(1)
    timings = time_calls(calls, seconds=seconds)
    # To the nanosecond, so that a limit which is one of these times is met by it.
    return [round(timings[str(number)].median_ms, 6) for number in range(len(specs))]


class _Call:
    def __init__(self, model: OnnxModel, images_NCHW: np.ndarray) -> None:
        self._model, self._images_NCHW = model, images_NCHW

    def __call__(self) -> None:
        self._model.run(self._images_NCHW)
