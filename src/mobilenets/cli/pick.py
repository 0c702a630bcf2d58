"""`mobilenets pick`: the models that fit a budget, best first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, fail, print_json, print_table
from mobilenets.cost import (
    Budget,
    NothingFitsError,
    fit_accuracy,
    format_quantity,
    parse_milliseconds,
    parse_quantity,
)
from mobilenets.cost import (
    pick as pick_models,
)
from mobilenets.cost.budget import RULE
from mobilenets.cost.latency import (
    MEASURED,
    LatencyProfile,
    asked_for,
    processor,
    profile_path,
    read_profile,
)


def pick(
    max_mult_adds: Annotated[str | None, typer.Option(help="Such as 150M.")] = None,
    max_parameters: Annotated[str | None, typer.Option(help="Such as 2M.")] = None,
    max_bytes: Annotated[str | None, typer.Option(help="Parameters on disk, such as 3MB.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Of a call on a device that was profiled, such as 5ms.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="A device's profile; default: this one's (mobilenets profile)."),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Of this device's profile; onnxruntime.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of this device's profile; all cores.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Of this device's profile; 1.")] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="ImageNet top-1 in percent, such as 60.", min=0, max=100)
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Bytes, top-1 and milliseconds of int8 models.")
    ] = False,
    any_size: Annotated[
        bool, typer.Option("--any", help="Widths and sizes in between, accuracy interpolated.")
    ] = False,
    num_classes: Annotated[int, typer.Option(min=1, help="Outputs of the classifier.")] = 1000,
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Rank what fits a budget, best first; exit 1 when nothing does."""
    budget = Budget(
        max_mult_adds=_optional(max_mult_adds, "--max-mult-adds"),
        max_parameters=_optional(max_parameters, "--max-parameters"),
        max_bytes=_optional(max_bytes, "--max-bytes"),
        max_latency_ms=None if max_latency is None else parse_milliseconds(max_latency),
        min_top1=min_top1,
        int8=int8,
    )
    measured = None
    if profile is not None:
        if runtime or threads or batch:
            raise ValueError(
                "--profile says what runtime, threads and batch it is of: leave those out"
            )
        measured = read_profile(profile)
    elif max_latency is not None:
        measured = _own_profile(runtime, threads, batch, int8=int8)
    try:
        fitting = pick_models(budget, num_classes, any_size=any_size, profile=measured)
    except NothingFitsError as error:
        if as_json:
            print_json([])
        fail(str(error), code=1)
    shown = fitting[:top]
    if as_json:
        print_json([candidate.to_dict() for candidate in shown])
        return
    print_table(
        f"{len(fitting)} models fit" + (f", the best {top}" if len(fitting) > top else ""),
        (
            "model",
            "top-1 %",
            "mult-adds",
            "parameters",
            "int8 bytes" if int8 else "fp32 bytes",
            *(["ms"] if measured else []),
        ),
        [
            (
                candidate.spec,
                f"{'~' if candidate.interpolated else ''}{candidate.top1:.1f}",
                format_quantity(candidate.cost.mult_adds),
                format_quantity(candidate.cost.parameters),
                format_quantity(candidate.bytes, "B"),
                *([] if candidate.latency_ms is None else [f"{candidate.latency_ms:.2f}"]),
            )
            for candidate in shown
        ],
    )
    typer.echo(f"rule: {RULE}; top-1 is ImageNet's, of 1,000 classes")
    if measured is not None:
        typer.echo(
            f"ms of a call on {measured.device}, {measured.runtime}, {measured.threads} threads, "
            f"batch {measured.batch}, between measured points; of 1,000 classes; models outside of "
            f"{measured.widths[0]} to {measured.widths[-1]} and {measured.sides[0]} to "
            f"{measured.sides[-1]} pixels are left out"
        )
    published = next((c.top1_source for c in shown if not c.interpolated), None)
    if published:
        typer.echo(f"top-1 from {published}")
    if any_size:
        fit = fit_accuracy(int8=int8)
        typer.echo(
            f"~ interpolated by a curve that misses the published 16 by {fit.residual:.2f} points "
            f"(root mean square; {fit.worst:.2f} at worst)"
        )


def _own_profile(
    runtime: str | None, threads: int | None, batch: int | None, *, int8: bool
) -> LatencyProfile:
    """The profile of the device here, measured before.

    Raises:
        ValueError: it was not.
    """
    from importlib.metadata import version

    from mobilenets.runtimes.model import RUNTIMES

    threads, batch = threads or os.cpu_count() or 1, batch or 1
    known = {found.name: found for found in RUNTIMES}
    name = runtime or MEASURED
    if name not in known:
        raise ValueError(f"--runtime is {', '.join(known)}, not {name!r}")
    asked = asked_for(name, threads, batch, int8=int8)
    lacking = (
        f"this device has no profile for{asked}: mobilenets profile{asked} measures one in a minute or two, and "
        "--profile takes another device's"
    )
    if not known[name].installed:
        raise ValueError(lacking)
    path = profile_path(
        processor(), name, version(known[name].package), threads, batch, "int8" if int8 else "fp32"
    )
    if not path.is_file():
        raise ValueError(lacking)
    return read_profile(path)


def _optional(text: str | None, option: str) -> float | None:
    return None if text is None else parse_quantity(text, option)
