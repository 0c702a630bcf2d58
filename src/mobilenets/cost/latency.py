"""Milliseconds of any member of the family on one device, between points measured there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost.count import cost

FORMAT = 1
# Runtimes compute channels in blocks: ONNX Runtime takes its quick layout where they are multiples of this.
BLOCK = 4
# The runtime that `mobilenets profile` measures unless it is told another.
MEASURED = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Milliseconds of a call, by width and then by side.

    Raises:
        ValueError: the table is not whole.

    >>> Grid(widths=(0.5, 1.0), sides=(128, 224), milliseconds=((1.0, 3.0), (4.0, 12.0))).ms(1.0, 224)
    12.0
    """

    widths: tuple[float, ...]
    sides: tuple[int, ...]
    milliseconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows = [len(row) for row in self.milliseconds]
        times = [time for row in self.milliseconds for time in row]
        whole = (
            len(self.widths) >= 2
            and len(self.sides) >= 2
            and rows == [len(self.sides)] * len(self.widths)
            and list(self.widths) == sorted(set(self.widths))
            and list(self.sides) == sorted(set(self.sides))
            and all(math.isfinite(time) and time > 0 for time in times)
            and min(self.widths) > 0
            and min(self.sides) > 0
        )
        if not whole:
            raise ValueError(
                "a latency profile needs two widths and two sides at least, ascending, and a time above 0 for each pair"
            )

    def ms(self, width: float, side: int) -> float:
        """The logarithm is interpolated linearly in the logarithms of width and side, and goes on so beyond them."""
        row, down = _between(self.widths, width)
        column, across = _between(self.sides, side)
        corners = [
            (1 - down) * (1 - across) * math.log(self.milliseconds[row][column]),
            (1 - down) * across * math.log(self.milliseconds[row][column + 1]),
            down * (1 - across) * math.log(self.milliseconds[row + 1][column]),
            down * across * math.log(self.milliseconds[row + 1][column + 1]),
        ]
        return math.exp(math.fsum(corners))


@dataclass(frozen=True, kw_only=True)
class LatencyProfile:
    """The family measured once on one device, in one runtime.

    Between the measured widths and sides the logarithm of a call's time is interpolated
    linearly in their logarithms. Widths whose channels are no multiples of 4 may take twice as long and more: how much is
    measured at some where no layer's are (`odd`). Of a model some of whose layers are, that much is added in proportion
    to the square root of the other layers' mult-adds, which is what was found to fit.

    Args:
        device: the processor, in words.
        runtime: such as `onnxruntime`.
        threads, batch: of a call.
        precision: fp32 or int8.
        versions: of the runtime and of this package.
        widths, sides: what was measured, ascending.
        milliseconds: of a call, by width and then by side.
        odd: the same of widths at which no layer's channels are multiples of 4.

    Raises:
        ValueError: the table is not whole.

    >>> profile = LatencyProfile(
    ...     device="a phone", runtime="litert", threads=1, batch=1, precision="fp32", versions={},
    ...     widths=(0.5, 1.0), sides=(128, 224), milliseconds=((1.0, 3.0), (4.0, 12.0)),
    ... )
    >>> profile.ms(MobileNetSpec(1.0, 224)), round(profile.ms(MobileNetSpec(0.75, 224)), 2)
    (12.0, 6.75)
    """

    device: str
    runtime: str
    threads: int
    batch: int
    precision: str
    versions: Mapping[str, str]
    widths: tuple[float, ...]
    sides: tuple[int, ...]
    milliseconds: tuple[tuple[float, ...], ...]
    odd: Grid | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "int8"):
            raise ValueError(f"a latency profile is of fp32 or int8 models, not {self.precision!r}")
        # A table that is not whole says so.
        _ = self.grid

    @cached_property
    def grid(self) -> Grid:
        """What was measured of the published widths."""
        return Grid(widths=self.widths, sides=self.sides, milliseconds=self.milliseconds)

    def covers(self, spec: MobileNetSpec) -> bool:
        """Whether the model lies between what was measured: square, separable, of stride 32."""
        return (
            str(spec) == str(MobileNetSpec(spec.width, spec.height))
            and self.widths[0] <= spec.width <= self.widths[-1]
            and self.sides[0] <= spec.height <= self.sides[-1]
        )

    def ms(self, spec: MobileNetSpec) -> float:
        """Milliseconds of a call.

        Raises:
            ValueError: the profile does not cover the model.
        """
        if not self.covers(spec):
            raise ValueError(
                f"no latency can be interpolated for {spec}: measured were square models of width "
                f"{self.widths[0]} to {self.widths[-1]} and of {self.sides[0]} to {self.sides[-1]} pixels"
            )
        ms = self.grid.ms(spec.width, spec.height)
        if self.odd is not None:
            # Beyond the odd widths that were measured, the nearest says how many times as long it takes.
            width = min(max(spec.width, self.odd.widths[0]), self.odd.widths[-1])
            times = self.odd.ms(width, spec.height) / self.grid.ms(width, spec.height)
            ms *= 1 + max(0.0, times - 1) * math.sqrt(1 - _share_in_blocks(spec))
        return round(ms, 9)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, to be shared."""
        return {
            "format": FORMAT,
            "device": self.device,
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "precision": self.precision,
            "versions": dict(self.versions),
            **_to_dict(self.grid),
            **({} if self.odd is None else {"odd": _to_dict(self.odd)}),
        }


def read_profile(path: Path) -> LatencyProfile:
    """A profile that `mobilenets profile` wrote, here or elsewhere.

    Raises:
        ValueError: the file is missing, damaged, or of a later format.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such latency profile")
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, and this version reads {FORMAT}")
        return LatencyProfile(
            device=str(values["device"]),
            runtime=str(values["runtime"]),
            threads=int(values["threads"]),
            batch=int(values["batch"]),
            precision=values["precision"],
            versions=dict(values["versions"]),
            **_table(values),
            odd=Grid(**_table(values["odd"])) if "odd" in values else None,
        )
    except KeyError as error:
        raise ValueError(f"{path} is not a latency profile: no {error}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a latency profile: {reason}") from None


def profile_path(
    device: str, runtime: str, version: str, threads: int, batch: int, precision: str
) -> Path:
    """Where this device's own profile is kept: in `XDG_CACHE_HOME/mobilenets`, else `~/.cache/mobilenets`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    mark = hashlib.sha256(f"{device}\n{version}".encode()).hexdigest()[:8]
    name = f"{runtime}-{precision}-{threads}-threads-batch-{batch}-{mark}.json"
    return cache / "mobilenets" / "profiles" / name


def asked_for(runtime: str, threads: int, batch: int, *, int8: bool) -> str:
    """The options of `profile` and `pick` that name a profile.

    >>> asked_for("litert", 2, 1, int8=True)
    ' --runtime litert --int8 --threads 2'
    """
    words = [
        f"--runtime {runtime}" * (runtime != MEASURED),
        "--int8" * int8,
        f"--threads {threads}",
        f"--batch {batch}" * (batch != 1),
    ]
    return "".join(f" {word}" for word in words if word)


def processor() -> str:
    """The processor here, in words."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _table(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "widths": tuple(map(float, values["widths"])),
        "sides": tuple(map(int, values["sides"])),
        "milliseconds": tuple(tuple(map(float, row)) for row in values["milliseconds"]),
    }


def _to_dict(grid: Grid) -> dict[str, Any]:
    return {
        "widths": list(grid.widths),
        "sides": list(grid.sides),
        "milliseconds": [list(row) for row in grid.milliseconds],
    }


def _share_in_blocks(spec: MobileNetSpec) -> float:
    """The share of mult-adds in convolutions whose channels, out and in, are multiples of 4, the image's aside.

    >>> _share_in_blocks(MobileNetSpec(0.5, 160)), _share_in_blocks(MobileNetSpec(0.49, 160))
    (1.0, 0.0)
    """
    counted = cost(spec, None)
    good = 0
    for each in counted.layers:
        row = each.layer
        from_image = row.in_channels == spec.input_channels
        if row.out_channels % BLOCK == 0 and (from_image or row.in_channels % BLOCK == 0):
            good += each.mult_adds
    return good / counted.mult_adds


def _between(points: Sequence[float], value: float) -> tuple[int, float]:
    """The interval that a value lies in, and how far along it in logarithms."""
    row = min(bisect_right(points, value) - 1, len(points) - 2)
    low, high = points[row], points[row + 1]
    return row, math.log(value / low) / math.log(high / low)
