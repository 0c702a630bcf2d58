"""`mobilenets convert`: boxes from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from mobilenets.cli.output import JsonFlag, print_json


def convert(
    data: Annotated[
        str, typer.Argument(help="Images with boxes: COCO, Pascal VOC or YOLO, as for `train`.")
    ],
    to: Annotated[str, typer.Option(help="coco, voc or yolo.")],
    output: Annotated[Path, typer.Option(help="The folder to write, empty or new.")],
    as_json: JsonFlag = False,
) -> None:
    """Write images with boxes in another format; Pascal VOC rounds to whole pixels, YOLO has no flags."""
    from mobilenets.data.boxes import Format, open_boxes, write_boxes

    known: dict[str, Format] = {name: name for name in get_args(Format)}
    if to not in known:
        raise ValueError(f"--to is {', '.join(known)}, not {to!r}")
    source = open_boxes(data)
    write_boxes(source, output, known[to])
    images = {name: len(split) for name, split in source.splits.items()}
    boxes = {name: sum(map(len, split.objects)) for name, split in source.splits.items()}
    if as_json:
        print_json(
            {
                "output": str(output),
                "format": to,
                "labels": list(source.labels),
                "images": images,
                "boxes": boxes,
            }
        )
        return
    for name in source.splits:
        typer.echo(f"{output}: {name}, {images[name]:,} images with {boxes[name]:,} boxes as {to}")
