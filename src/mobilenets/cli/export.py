"""`mobilenets export`: a run as a file for another runtime, proven equal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, note, print_json

TARGETS = ("onnx",)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[str, typer.Option(help="Only onnx so far.")] = "onnx",
    output: Annotated[Path | None, typer.Option(help="The folder to write; RUN/onnx.")] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Images to compare on, when the run's own data is no longer there."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Export a run, read the file back and compare it with the run on real images."""
    if to not in TARGETS:
        raise ValueError(f"unknown target {to!r}: the targets are {', '.join(TARGETS)}")

    from mobilenets.deploy.onnx import export_onnx
    from mobilenets.training.run import Run

    opened = Run.load(run)
    folder = output or run / to
    inputs = opened.sample_inputs(images)
    parity = export_onnx(opened, folder, inputs, overwrite=overwrite)
    size = (folder / "model.onnx").stat().st_size
    if as_json:
        print_json({"file": str(folder / "model.onnx"), "bytes": size, **parity.to_dict()})
        return
    typer.echo(f"{folder / 'model.onnx'}: {size / 1e6:.2f} MB, equal in ONNX Runtime: {parity}")
    note("beside it: preprocessing.json, labels.txt, golden.npz, parity.json")
