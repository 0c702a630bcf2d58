"""`mobilenets shard`: a data set as tar or Parquet shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from mobilenets.cli.output import (
    BadImageOption,
    JsonFlag,
    note,
    on_bad_image_choice,
    print_json,
)


def shard(
    data: Annotated[str, typer.Argument(help="Labelled images, as for `train`.")],
    to: Annotated[str, typer.Option(help="webdataset (tar files) or parquet.")] = "webdataset",
    size: Annotated[str, typer.Option(help="Of a shard, about, such as 256MB.")] = "256MB",
    output: Annotated[
        Path | None, typer.Option(help="The folder to write; DATA-webdataset, DATA-parquet.")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(min=8, help="The shorter side of larger images; without it bytes stay."),
    ] = None,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Of JPEG, for images that are resized.")
    ] = 92,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the images.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Shards written at once; one a core.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace shards.")] = False,
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Write labelled images as shards, shuffled, with an index beside them; the same command goes on."""
    from mobilenets.cost import format_quantity, parse_quantity
    from mobilenets.data.shards.places import Layout
    from mobilenets.data.shards.write import Choices, write_shards
    from mobilenets.data.sources import open_source

    layouts: dict[str, Layout] = {name: name for name in get_args(Layout)}
    if to not in layouts:
        raise ValueError(f"--to is {' or '.join(layouts)}, not {to!r}")
    choices = Choices(layouts[to], parse_quantity(size, "--size"), resize, quality, seed)
    skip_or_stop = on_bad_image_choice(on_bad_image)
    source = open_source(data)
    folder = output or Path(f"{Path(data).name}-{to}")
    written = write_shards(
        source, folder, choices, on_bad_image=skip_or_stop, overwrite=overwrite, threads=threads
    )
    for problem in written.problems:
        note(f"warning: left out: {problem}")
    splits = written.splits()
    if as_json:
        print_json(
            {
                "output": str(folder),
                "layout": to,
                "labels": list(source.labels),
                "splits": splits,
                "left_out": list(written.problems),
            }
        )
        return
    for name, figures in splits.items():
        typer.echo(
            f"{folder}: {name}, {figures['images']:,} images in {figures['shards']:,} shards, "
            f"{format_quantity(figures['bytes'], 'B')}"
        )
    typer.echo(f"next: mobilenets train {folder}")
