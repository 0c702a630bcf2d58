"""`mobilenets weights`: published weights, and weights of other projects as runs of ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobilenets.architecture.detector import DetectorSpec
from mobilenets.cli.output import (
    JsonFlag,
    OutputOption,
    OverwriteOption,
    note,
    print_json,
    print_table,
)
from mobilenets.cost import format_quantity

if TYPE_CHECKING:
    from mobilenets.weights.imported import ImportedWeights

weights = typer.Typer(
    help="Published weights, and other projects' weights as runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@weights.command("list")
def list_weights(as_json: JsonFlag = False) -> None:
    """All published weights that are known, with what their publishers report."""
    from mobilenets.weights.registry import PUBLISHED_WEIGHTS

    if as_json:
        print_json([entry.to_dict() for entry in PUBLISHED_WEIGHTS])
        return
    rows = (
        (
            entry.name,
            "" if entry.top1 is None else f"{entry.top1:.1f}",
            f"{entry.cost.mult_adds / 1e6:,.0f}",
            format_quantity(entry.bytes, "B"),
            entry.licence.partition(" ")[0],
        )
        for entry in PUBLISHED_WEIGHTS
    )
    columns = ("weights", "top-1 reported, %", "mult-adds, M", "size", "licence")
    print_table("Published weights of MobileNet V1, on ImageNet and COCO", columns, rows)


@weights.command()
def show(
    name: Annotated[str, typer.Argument(help="Such as keras/0.5-160.")], as_json: JsonFlag = False
) -> None:
    """Where published weights are, and all that is known of them."""
    from mobilenets.weights.registry import find_weights

    values = find_weights(name).to_dict()
    if as_json:
        print_json(values)
        return
    rows: list[tuple[str, Any]] = [
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
        for key, value in values.items()
        if key not in ("name", "files") and value is not None
    ]
    for file in values["files"]:
        rows += [(key, value) for key, value in file.items() if value]
    print_table(name, ("", ""), rows, left=2)


@weights.command()
def get(
    name: Annotated[str, typer.Argument(help="Such as keras/0.5-160.")],
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Download published weights, unless the cache has them, and write them as a run."""
    from mobilenets.training.run import check_free
    from mobilenets.weights.load import load_weights
    from mobilenets.weights.registry import find_weights

    entry = find_weights(name)
    said = {
        "top1": entry.top1,
        "top5": entry.top5,
        "reported_by": entry.reported_by,
        "licence": entry.licence,
    }
    folder = output or Path("runs") / name.replace("/", "-")
    check_free(folder, overwrite=overwrite)
    _write(folder, load_weights(name), {"weights": name, **said}, overwrite, as_json)


@weights.command("import")
def import_files(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="A file, an address, or hf://OWNER/NAME; of TFLite several."
        ),
    ],
    output: OutputOption = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one a line; ImageNet's for 1,000 classes.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="relu, relu6 or leaky, where the file can't tell.")
    ] = None,
    padding: Annotated[
        str | None, typer.Option(help="torch, tensorflow or keras, likewise.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Input side over the last map's, likewise; 32.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Of batch norm, likewise.")] = None,
    channels: Annotated[str | None, typer.Option(help="RGB or BGR, likewise.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="Taken from pixel / 255, such as 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="What divides then.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Input side, where the file can't tell.")
    ] = None,
    keep_background: Annotated[
        bool, typer.Option("--keep-background", help="Keep TensorFlow's class 0 of 1,001.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Read weights of TensorFlow Lite, Keras, timm, Hugging Face or PyTorch, and write them as a run."""
    from mobilenets.training.run import check_free
    from mobilenets.weights.files import import_weights, parse_said, read_labels
    from mobilenets.weights.load import load_weights

    folder = output or Path("runs") / (Path(files[0].rstrip("/")).stem.lstrip(".") or "weights")
    check_free(folder, overwrite=overwrite)
    names = read_labels(labels) if labels else ()
    said = parse_said(
        activation=activation,
        padding=padding,
        total_stride=stride,
        batch_norm_epsilon=epsilon,
        resolution=resolution,
        channels=channels,
        mean=mean,
        std=std,
    )
    # Several files stand for themselves; one may also be an address or a name.
    read = (
        partial(load_weights, files[0])
        if len(files) == 1
        else partial(import_weights, [Path(file) for file in files])
    )
    imported = read(labels=names, said=said, keep_background=keep_background)
    origin = {"weights": " + ".join(files), "licence": imported.licence or None}
    _write(folder, imported, origin, overwrite, as_json)


def _write(
    folder: Path,
    imported: ImportedWeights,
    origin: dict[str, Any],
    overwrite: bool,
    as_json: bool,
) -> None:
    """A run of these weights, and a line about it."""
    from mobilenets import tasks
    from mobilenets.training.model_card import write_model_card
    from mobilenets.training.run import Run

    name, names = "classification", imported.labels
    if isinstance(imported.spec, DetectorSpec):
        name = "detection"
    elif imported.classes is None:
        raise ValueError(
            f"{origin['weights']} has no classifier, and a run needs one: "
            "mobilenets train DATA --weights takes it as it is"
        )
    elif not names:
        names = tuple(f"class {index}" for index in range(imported.classes))
    task = tasks.find(name).of_weights(imported.spec, names, imported.preprocessing)
    run = Run.of_weights(
        folder,
        task,
        imported.spec,
        imported.state,
        {key: value for key, value in origin.items() if value is not None},
        overwrite=overwrite,
    )
    write_model_card(run, None)
    spec = run.spec
    if as_json:
        values = {"run": str(folder), "model": str(spec), "classes": len(names)}
        print_json({**values, "spec": spec.to_dict(), "preprocessing": run.preprocessing.to_dict()})
        return
    note(
        f"{spec}, {len(names):,} classes, {spec.activation}, {spec.padding} padding, "
        f"{run.preprocessing.channels} input; the run is in {folder}"
    )
    if not imported.labels:
        note("warning: the classes have no names: give them with --labels FILE")
