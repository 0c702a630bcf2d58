"""`mobilenets predict`: what a run says about images."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobilenets.cli.output import (
    BadImageOption,
    JsonFlag,
    fail,
    note,
    on_bad_image_choice,
    print_json,
)

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Files, folders and glob patterns.")
    ],
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV, one line a guess.")] = False,
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Predict the five most likely labels of each image."""
    skip_or_stop = on_bad_image_choice(on_bad_image)
    if as_json and as_csv:
        raise ValueError("give --json or --csv, not both")

    from mobilenets.data.images import BadImageError, find_images
    from mobilenets.data.progress import progress
    from mobilenets.training.run import Run

    opened = Run.load(run)
    paths = find_images(images)
    rows: list[dict[str, Any]] = []
    with progress("predicting", len(paths)) as advance:
        for start in range(0, len(paths), BATCH):
            readable: dict[Path, Tensor] = {}
            for path in paths[start : start + BATCH]:
                try:
                    readable[path] = opened.prepare(path)
                except BadImageError as error:
                    if skip_or_stop == "stop":
                        raise BadImageError(
                            f"{error}; --on-bad-image skip leaves such images out"
                        ) from None
                    note(f"warning: left out: {error}")
            predictions = opened.predict_prepared(list(readable.values()))
            for path, prediction in zip(readable, predictions, strict=True):
                rows.append({"image": str(path), **prediction.to_dict()})
                if not as_json and not as_csv:
                    typer.echo(f"{path}: {prediction}")
            advance(len(paths[start : start + BATCH]))
    if not rows:
        fail("no image could be read")
    if as_json:
        print_json(rows)
    if as_csv:
        lines = [
            {"image": row["image"], "rank": rank, **guess}
            for row in rows
            for rank, guess in enumerate(row["predictions"], start=1)
        ]
        writer = csv.DictWriter(sys.stdout, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
