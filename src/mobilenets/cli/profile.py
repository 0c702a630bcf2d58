"""`mobilenets profile`: the family measured on this device, for `pick --max-latency`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, note, print_json, print_table
from mobilenets.cost.latency import MEASURED, asked_for, processor, profile_path


def profile(
    runtime: Annotated[
        str, typer.Option(help="onnxruntime (default), litert, executorch, openvino or pt2.")
    ] = MEASURED,
    int8: Annotated[bool, typer.Option("--int8", help="Of int8 models, not floats.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores a call; all.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Of timing, exports aside.")] = 20.0,
    check: Annotated[
        int, typer.Option(min=0, help="Also measure so many models in between, to see the error.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option(help="A file to share; default: this device's own.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time the 16 published sizes in a runtime and keep the table for the picker."""
    from importlib.metadata import version

    from mobilenets.deploy.profile import check_profile, find_profiled, measure_profile
    from mobilenets.deploy.target import FLOAT, INT8
    from mobilenets.training.checkpoint import write_json
    from mobilenets.training.memory import keep_freed_memory

    keep_freed_memory()

    cores = threads or os.cpu_count() or 1
    precision = INT8 if int8 else FLOAT
    found, _ = find_profiled(runtime, precision)
    path = output or profile_path(
        processor(), runtime, version(found.package), cores, batch, precision
    )
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder: name a file in it")
    # What can't be written is said before a minute of measuring.
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = measure_profile(runtime, precision, cores, batch, seconds)
    write_json(path, measured.to_dict())
    checked = check_profile(measured, check, seconds) if check else []
    errors = [abs(guess / found - 1) for _, guess, found in checked]
    mean_error = sum(errors) / len(errors) if errors else None
    if as_json:
        rows = [
            {"model": name, "interpolated_ms": guess, "measured_ms": found}
            for name, guess, found in checked
        ]
        print_json(
            {"file": str(path), **measured.to_dict(), "checked": rows, "mean_error": mean_error}
        )
        return
    print_table(
        f"{measured.device}, {runtime}, {precision}, {cores} threads, batch {batch}: ms a call",
        ("width", *map(str, measured.sides)),
        [
            (width, *(f"{time:.2f}" for time in row))
            for width, row in zip(measured.widths, measured.milliseconds, strict=True)
        ],
    )
    if mean_error is not None:
        typer.echo(
            f"{len(checked)} models in between are off by {100 * mean_error:.1f} % on average"
        )
    note(
        f"kept: {path}; mobilenets pick --max-latency 5ms"
        + (f" --profile {output}" if output else asked_for(runtime, cores, batch, int8=int8))
    )
