"""`mobilenets predict`: what a run says about images."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mobilenets.cli.output import (
    BadImageOption,
    JsonFlag,
    fail,
    note,
    on_bad_image_choice,
    print_json,
)


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Files, folders and glob patterns.")
    ],
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV, one line a guess.")] = False,
    runtime: Annotated[
        str, typer.Option(help="auto (the fastest), torch, or one that the run was exported for.")
    ] = "auto",
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Predict the five most likely labels of each image."""
    skip_or_stop = on_bad_image_choice(on_bad_image)
    if as_json and as_csv:
        raise ValueError("give --json or --csv, not both")

    from mobilenets.data.images import BadImageError, find_images
    from mobilenets.data.progress import progress
    from mobilenets.deploy.predictor import BATCH, find_engine, predict_files
    from mobilenets.training.run import Run
    from mobilenets.training.stages import Stages

    opened = Run.load(run)
    paths = find_images(images)
    engine = find_engine(opened, runtime, batch=min(len(paths), BATCH))
    rows: list[dict[str, Any]] = []
    stages = Stages()
    with progress("predicting", len(paths)) as advance:
        for path, prediction in predict_files(opened, paths, engine, stages=stages):
            advance(1)
            if isinstance(prediction, BadImageError):
                if skip_or_stop == "stop":
                    raise BadImageError(f"{prediction}; --on-bad-image skip leaves such images out")
                note(f"warning: left out: {prediction}")
                continue
            rows.append({"image": str(path), "runtime": engine.runtime, **prediction.to_dict()})
            if not as_json and not as_csv:
                typer.echo(f"{path}: {prediction}")
    if not rows:
        fail("no image could be read")
    if not as_json and not as_csv:
        note(f"through {engine.runtime}, {stages.images_per_second():,.0f} images/s ({stages})")
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
