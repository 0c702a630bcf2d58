"""`mobilenets predict`: what a run says about images, videos and what a camera sees."""

from __future__ import annotations

import csv
import math
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Event
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
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Photos, folders of photos, videos and glob patterns; or camera, camera:1 (with OpenCV).",
        ),
    ],
    every: Annotated[
        float, typer.Option(help="Seconds between frames of videos and cameras; 0 takes all.")
    ] = 1.0,
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
    if not 0 <= every < math.inf:
        raise ValueError(f"--every is a number of seconds, at least 0, not {every:g}")

    from mobilenets.data.images import BadImageError
    from mobilenets.data.progress import progress
    from mobilenets.data.video import Frame, find_pictures
    from mobilenets.deploy.predictor import batch_for, find_engine, predict_images
    from mobilenets.training.run import Run
    from mobilenets.training.stages import Stages

    def leave_out(error: BadImageError) -> None:
        if skip_or_stop == "stop":
            raise BadImageError(f"{error}; --on-bad-image skip leaves such images out")
        note(f"warning: left out: {error}")

    opened = Run.load(run)
    over = Event()
    pictures = find_pictures(images, every, leave_out=leave_out, over=over.is_set)
    batch = batch_for(pictures)
    engine = find_engine(opened, runtime, batch=batch)
    rows: list[dict[str, Any]] = []
    stages = Stages()
    said = 0
    # A camera is watched until Ctrl-C, and what it saw is written then.
    with (
        progress("predicting", pictures.count) as advance,
        suppress(KeyboardInterrupt) if pictures.live else nullcontext(),
    ):
        for image, prediction in predict_images(
            opened, pictures.images, engine, batch_size=batch, stages=stages, over=over
        ):
            advance(1)
            if isinstance(prediction, BadImageError):
                leave_out(prediction)
                continue
            said += 1
            if not as_json and not as_csv:
                typer.echo(f"{image}: {prediction}")
                continue
            row: dict[str, Any] = {"image": str(image), "runtime": engine.runtime}
            if isinstance(image, Frame):
                row |= {"image": image.place, "seconds": round(image.seconds, 3)}
            rows.append({**row, **prediction.to_dict()})
    if not said:
        fail("no image could be read")
    if not as_json and not as_csv:
        note(f"through {engine.runtime}, {stages.images_per_second():,.0f} images/s ({stages})")
    if as_json:
        print_json(rows)
    if as_csv:
        # Photos beside videos have an empty one.
        columns = ["image", *(["seconds"] if any("seconds" in row for row in rows) else [])]
        lines = [
            {**{column: row.get(column) for column in columns}, "rank": rank, **guess}
            for row in rows
            for rank, guess in enumerate(row["predictions"], start=1)
        ]
        writer = csv.DictWriter(sys.stdout, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
