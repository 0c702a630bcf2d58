"""`mobilenets cost`: what a model costs, exactly."""

from __future__ import annotations

from typing import Annotated

import typer

from mobilenets.architecture.detector import COCO_CLASSES, DetectorSpec, parse_spec
from mobilenets.cli.output import JsonFlag, print_json, print_table
from mobilenets.cost import CONVENTION, format_quantity
from mobilenets.cost import cost as cost_of

IMAGENET_CLASSES = 1000
COLUMNS = (
    "model",
    "mult-adds",
    "FLOPs",
    "parameters",
    "without BN",
    "Keras' count",
    "activation peak",
    "fp32",
    "int8",
)


def cost(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Such as 1.0-224, 0.5-32-s16, 1.0-224-shallow; ssd300/1.0, ssdfpn640/0.5, frcnn600/1.0.",
        ),
    ],
    num_classes: Annotated[
        int | None,
        typer.Option(min=1, help="Default: 1000; of detectors 90, the background besides."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="One line a layer as well.")] = False,
    rounding: Annotated[str, typer.Option(help="slim, keras or divisible8.")] = "slim",
    padding: Annotated[str, typer.Option(help="torch, tensorflow or keras.")] = "torch",
    input_channels: Annotated[int, typer.Option(min=1, help="3 for colour, 1 for grey.")] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Count mult-adds, parameters, memory and bytes of any model, without building it."""
    choices = {"rounding": rounding, "padding": padding, "input_channels": input_channels}
    specs = [parse_spec(name, **choices) for name in models]
    classes = [
        num_classes or (COCO_CLASSES if isinstance(spec, DetectorSpec) else IMAGENET_CLASSES)
        for spec in specs
    ]
    costs = [cost_of(spec, number) for spec, number in zip(specs, classes, strict=True)]
    if as_json:
        print_json(
            [
                {"model": str(spec), "num_classes": number, **counted.to_dict()}
                for spec, number, counted in zip(specs, classes, costs, strict=True)
            ]
        )
        return
    print_table(
        f"Cost with {' or '.join(map(str, dict.fromkeys(classes)))} classes",
        COLUMNS,
        [
            (
                spec,
                f"{counted.mult_adds:,}",
                f"{counted.flops:,}",
                f"{counted.parameters:,}",
                f"{counted.parameters_without_batch_norm:,}",
                f"{counted.parameters_keras:,}",
                f"{counted.activation_peak:,}",
                format_quantity(counted.bytes_fp32, "B"),
                format_quantity(counted.bytes_int8, "B"),
            )
            for spec, counted in zip(specs, costs, strict=True)
        ],
    )
    for spec, counted in zip(specs, costs, strict=True) if layers else ():
        total = counted.mult_adds
        print_table(
            f"{spec}, layer by layer",
            ("layer", "type", "input", "output", "mult-adds", "%", "parameters"),
            [
                (
                    row.layer.name,
                    row.layer.type,
                    _shape(row.layer.in_size, row.layer.in_channels),
                    _shape(row.layer.out_size, row.layer.out_channels),
                    f"{row.mult_adds:,}",
                    f"{100 * row.mult_adds / total:.2f}",
                    f"{row.parameters:,}",
                )
                for row in counted.layers
            ],
            left=2,
        )
        print_table(
            f"{spec}, by layer type",
            ("type", "mult-adds", "%", "parameters", "% of parameters"),
            [
                (
                    kind,
                    f"{part.mult_adds:,}",
                    f"{100 * part.mult_adds / total:.2f}",
                    f"{part.parameters:,}",
                    f"{100 * part.parameters / counted.parameters:.2f}",
                )
                for kind, part in counted.by_type().items()
            ],
        )
    typer.echo(CONVENTION)


def _shape(size: tuple[int, int], channels: int) -> str:
    return f"{size[0]}x{size[1]}x{channels}"
