"""`mobilenets predict`: what a run says about images, videos and what a camera sees."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
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
    from mobilenets.data.images import BadImageError
    from mobilenets.data.video import Frame
    from mobilenets.training.task import Prediction


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Files, folders and glob patterns; videos, and camera or camera:1 (with OpenCV).",
        ),
    ],
    every: Annotated[
        float, typer.Option(help="Seconds between frames of videos and cameras; 0 takes all.")
    ] = 1.0,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV, one line a guess.")] = False,
    draw: Annotated[
        Path | None, typer.Option(help="A folder for copies of the images with the answer on them.")
    ] = None,
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
    from mobilenets.data.video import Frame
    from mobilenets.deploy.predictor import BATCH, find_engine, predict_images
    from mobilenets.training.interrupt import interrupts
    from mobilenets.training.run import Run
    from mobilenets.training.stages import Stages

    def leave_out(error: BadImageError) -> None:
        if skip_or_stop == "stop":
            raise BadImageError(f"{error}; --on-bad-image skip leaves such images out")
        note(f"warning: left out: {error}")

    opened = Run.load(run)
    asked, count = _find(images, every, leave_out)
    # What a camera sees is answered at once, and asked for until Ctrl-C.
    batch = 1 if count is None else max(1, min(count, BATCH))
    engine = find_engine(opened, runtime, batch=batch)
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    if draw is not None:
        draw.mkdir(parents=True, exist_ok=True)
    stages = Stages()
    with (
        progress("predicting", count) as advance,
        interrupts() if count is None else nullcontext(_never) as stop,
    ):
        for image, prediction in predict_images(
            opened, asked, engine, batch_size=batch, stages=stages
        ):
            advance(1)
            if isinstance(prediction, BadImageError):
                leave_out(prediction)
                continue
            place: dict[str, Any] = {"image": str(image)}
            if isinstance(image, Frame):
                place = {"image": image.place, "seconds": round(image.seconds, 3)}
            rows.append({**place, "runtime": engine.runtime, **prediction.to_dict()})
            if as_csv:
                guesses = enumerate(prediction.rows(), start=1)
                lines += [{**place, "rank": rank, **guess} for rank, guess in guesses]
            if draw is not None:
                _draw(image, prediction, draw / f"{len(rows):06}-{_plain(image)}.jpg")
            if not as_json and not as_csv:
                typer.echo(f"{image}: {prediction}")
            if stop():
                break
    if not rows:
        fail("no image could be read")
    if not as_json and not as_csv:
        note(f"through {engine.runtime}, {stages.images_per_second():,.0f} images/s ({stages})")
    if as_json:
        print_json(rows)
    if as_csv:
        fields = dict.fromkeys(key for line in lines for key in line)
        writer = csv.DictWriter(sys.stdout, fieldnames=list(fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _find(
    places: list[str], every: float, leave_out: Callable[[BadImageError], None]
) -> tuple[Iterator[Path | Frame], int | None]:
    """Images and frames that places name, and how many; None if one of them is a camera."""
    from mobilenets.data.images import BadImageError, find_images
    from mobilenets.data.video import Video

    found: list[Path | Video] = []
    count, live = 0, False
    for place in places:
        if not Video.names(place):
            paths = find_images([place])
            found += paths
            count += len(paths)
            continue
        video = Video(place, every)
        try:
            count += video.count()
        except BadImageError as error:
            leave_out(error)
            continue
        found.append(video)
        live = live or video.camera is not None
    images: Iterator[Path | Frame] = chain.from_iterable(
        place.frames() if isinstance(place, Video) else [place] for place in found
    )
    return images, None if live else count


def _draw(image: Path | Frame, prediction: Prediction, path: Path) -> None:
    from PIL import Image

    from mobilenets.data.images import read_image

    if isinstance(image, Path):
        picture = Image.fromarray(read_image(image).permute(1, 2, 0).numpy())
    else:
        picture = Image.fromarray(image.pixels_HWC)
    prediction.draw(picture).save(path, quality=90)


def _plain(image: Path | Frame) -> str:
    """A file name that tells which image it is of."""
    if isinstance(image, Path):
        return image.stem
    return f"{Path(image.place).stem}-{image.seconds:.2f}s".replace(":", "-")


def _never() -> bool:
    return False
