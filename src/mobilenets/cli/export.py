"""`mobilenets export`: a run as files for other runtimes, proven equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.cli.output import JsonFlag, note, print_json

if TYPE_CHECKING:
    from mobilenets.deploy.bundle import Bundle
    from mobilenets.training.task import Task


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[
        list[str] | None,
        typer.Option(help="onnx (default), litert, executorch, openvino, coreml, pt2; or several."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="In 8-bit integers, not floats.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write; RUN/TARGET, RUN/TARGET-int8.")
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(help="Images to compare on, not the run's own.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled data to compare on, not the run's own.")
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(help="Images for int8's ranges, not the run's training images."),
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(min=0, help="Points of top-1 or mAP that int8 may lose; 1.")
    ] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One int8 scale a layer, for old accelerators.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="A detector gives all its boxes, not the best.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Images to compare on at most.")] = 512,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Export a run, read each file back in its own runtime and compare it on real images."""
    from mobilenets.deploy.target import FLOAT, INT8, find_targets

    targets = find_targets(to or ["onnx"])
    if not int8 and (calibrate or per_tensor or max_loss is not None):
        raise ValueError("--calibrate, --max-loss and --per-tensor are for --int8")
    precision = INT8 if int8 else FLOAT
    for target in targets:
        target.check_installed(precision)

    from mobilenets.deploy.bundle import Quantisation, check_free, folder_of
    from mobilenets.deploy.bundle import export as write
    from mobilenets.deploy.evidence import find_calibration, find_evidence
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.run import Run

    keep_freed_memory()
    opened = Run.load(run)
    folders = [folder_of(opened, target, precision) for target in targets]
    if output is not None:
        folders = [output] if len(targets) == 1 else [output / folder.name for folder in folders]
    if raw and opened.task.selection is None:
        raise ValueError(f"--raw is for detectors, and {run} is none")
    for folder in folders:
        check_free(folder, overwrite=overwrite)
    evidence = find_evidence(opened, images, data, limit=limit)
    quantisation = None
    if int8:
        quantisation = Quantisation(
            calibration_NCHW=find_calibration(opened, calibrate),
            max_loss=max_loss,
            per_channel=not per_tensor,
        )
    rows = []
    tell = note if as_json else typer.echo
    for target, folder in zip(targets, folders, strict=True):
        bundle = write(opened, target, folder, evidence, quantisation, raw=raw, overwrite=overwrite)
        rows.append(bundle.manifest | {"file": str(bundle.file)})
        size = f"{bundle.file}: {bundle.manifest['bytes'] / 1e6:.2f} MB"
        if bundle.parity is None:
            tell(f"{size}, not compared: {target.title} files can't be run here")
        elif int8:
            cost = _cost(bundle, opened.task)
            tell(f"{size}, int8 in {bundle.manifest['runtime']}: {cost}")
        else:
            tell(f"{size}, equal in {bundle.manifest['runtime']}: {bundle.parity}")
    if as_json:
        print_json(rows)


def _cost(bundle: Bundle, task: Task) -> str:
    assert bundle.parity is not None
    words = f"{100 * bundle.parity.share:.2f} % of {task.answers} agree"
    figure = bundle.manifest[task.monitor]
    if figure["file"] is not None:
        whole, rounded = 100 * figure["fp32"], 100 * figure["file"]
        words += f", {task.figure_title} {rounded:.2f} % (float {whole:.2f} %)"
    layers = bundle.manifest["float_layers"]
    return words + (f"; in float: {', '.join(layers)}" if layers else "")
