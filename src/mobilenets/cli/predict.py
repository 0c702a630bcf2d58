"""`mobilenets predict`: what a run says about images, videos and what a camera sees."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobilenets.cli.output import (
    BadImageOption,
    JsonFlag,
    RuntimeOption,
    fail,
    leaving_out,
    note,
    print_json,
)

if TYPE_CHECKING:
    from PIL import Image

    from mobilenets.data.video import Frame
    from mobilenets.training.run import Run
    from mobilenets.training.task import Prediction
    from mobilenets.web.map import WorldMap

    RowsOf = Callable[[Path | Frame, Prediction], list[dict[str, Any]]]


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
    draw: Annotated[
        Path | None, typer.Option(help="A folder for copies of the images with the answer on them.")
    ] = None,
    score: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="The least a detector tells with; 0.5.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            min=32, help="A detector also looks at parts of so many pixels, of large images."
        ),
    ] = None,
    coco: Annotated[
        Path | None,
        typer.Option(help="Write COCO's results, with the numbers of this annotation file."),
    ] = None,
    finest: Annotated[
        str | None,
        typer.Option(help="How closely places are told: city, region or country (the default)."),
    ] = None,
    as_geojson: Annotated[
        bool, typer.Option("--geojson", help="Write GeoJSON, a point for each guess at a place.")
    ] = False,
    world_map: Annotated[
        Path | None,
        typer.Option("--map", help="A page to write, with places on a map, such as map.html."),
    ] = None,
    runtime: RuntimeOption = "auto",
    on_bad_image: BadImageOption = "stop",
    engine: Annotated[
        str,
        typer.Option(help="threads, or ray: processes, for very many photos; with --output."),
    ] = "threads",
    output: Annotated[
        Path | None,
        typer.Option(help="A folder for Parquet files; what is in it is not done again."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A cluster of Ray, HOST:PORT or auto; else it starts one here."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of Ray; as many as there are cores.")
    ] = None,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Also keep the network's outputs, to teach with.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Predict again what failed before.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict the five most likely labels of each image, or what a detector finds in it."""
    leave_out = leaving_out(on_bad_image)
    if engine not in ("threads", "ray"):
        raise ValueError(f"--engine is threads or ray, not {engine!r}")
    of_ray = {
        "--output": output,
        "--address": address,
        "--workers": workers,
        "--outputs": outputs,
        "--retry-failed": retry_failed,
    }
    not_of_ray = {
        "--every": every != 1,
        "--csv": as_csv,
        "--draw": draw,
        "--coco": coco,
        "--geojson": as_geojson,
        "--map": world_map,
    }
    for option, given in (not_of_ray if engine == "ray" else of_ray).items():
        if given:
            raise ValueError(f"{option} does not go with --engine {engine}")
    if as_json + as_csv + as_geojson + (coco is not None) > 1:
        raise ValueError("give one of --json, --csv, --geojson and --coco")
    if not 0 <= every < math.inf:
        raise ValueError(f"--every is a number of seconds, at least 0, not {every:g}")

    from mobilenets.data.images import BadImageError
    from mobilenets.data.progress import progress
    from mobilenets.data.video import find_pictures
    from mobilenets.deploy.predictor import batch_for, find_engine, predict_images
    from mobilenets.training.run import Run
    from mobilenets.training.stages import Stages

    opened = Run.load(run)
    if opened.task.name != "detection" and (score, tile, coco) != (None, None, None):
        raise ValueError(f"--score, --tile and --coco are for detectors, and {run} is none")
    on_map: WorldMap | None = None
    if opened.task.name == "geolocation":
        on_map = _tell_places(opened, finest, world_map)
    elif finest is not None or as_geojson or world_map is not None:
        raise ValueError(
            f"--finest, --geojson and --map are for geolocation, and {run} has learnt {opened.task.name}"
        )
    if engine == "ray":
        if output is None:
            raise ValueError("--engine ray writes files: give --output FOLDER")
        asked = {"runtime": runtime, "outputs": outputs, "score": score, "side": tile}
        spread = {"address": address, "workers": workers, "retry_failed": retry_failed}
        _predict_in_bulk(opened, images, output, asked, spread, on_bad_image, as_json=as_json)
        return
    over = Event()
    pictures = find_pictures(images, every, leave_out=leave_out, over=over.is_set)
    batch = batch_for(pictures)
    found = find_engine(opened, runtime, batch=batch)
    rows_of: RowsOf | None = None
    if coco is not None:
        from mobilenets.tasks.detection.coco_results import CocoResults

        if pictures.videos:
            raise ValueError("--coco is for photos: COCO's files number no frames of videos")
        # Whoever scores them wants them all.
        score = 0.01 if score is None else score
        rows_of = CocoResults(coco, opened.labels).rows
    elif as_json:
        rows_of = partial(_json_rows, found.runtime)
    elif as_csv:
        rows_of = _csv_rows
    elif as_geojson:
        rows_of = _geojson_rows
    rows: list[dict[str, Any]] = []
    stages = Stages()
    said = 0
    if draw is not None:
        draw.mkdir(parents=True, exist_ok=True)
    # A camera is watched until Ctrl-C, and what it saw is written then.
    with (
        progress("predicting", pictures.count) as advance,
        suppress(KeyboardInterrupt) if pictures.live else nullcontext(),
    ):
        for image, prediction in predict_images(
            opened,
            pictures.images,
            found,
            batch_size=batch,
            stages=stages,
            over=over,
            side=tile,
            score=score,
        ):
            advance(1)
            if isinstance(prediction, BadImageError):
                leave_out(prediction)
                continue
            assert not isinstance(image, BadImageError)
            said += 1
            if draw is not None:
                _draw(image, prediction, draw / f"{said:06}-{_plain(image)}.jpg")
            if on_map is not None:
                on_map.add(str(image), _picture(image), prediction)
            if rows_of is None:
                typer.echo(f"{image}: {prediction}")
            else:
                rows += rows_of(image, prediction)
    if not said:
        fail("no image could be read")
    if rows_of is None:
        note(f"through {found.runtime}, {stages.images_per_second():,.0f} images/s ({stages})")
    elif as_csv:
        # Where nothing was found in any image, no row tells the columns.
        fields = dict.fromkeys(key for row in rows or [{"image": None}] for key in row)
        # Photos have no time, and may come before what has.
        ordered = sorted(fields, key=("image", "seconds", *fields).index)
        writer = csv.DictWriter(sys.stdout, fieldnames=ordered, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif as_geojson:
        print_json({"type": "FeatureCollection", "features": rows})
    else:
        print_json(rows)
    if on_map is not None:
        on_map.write()
        note(f"map: {world_map}")


def _predict_in_bulk(
    run: Run,
    images: list[str],
    output: Path,
    asked: dict[str, Any],
    spread: dict[str, Any],
    on_bad_image: str,
    *,
    as_json: bool,
) -> None:
    """Predict with Ray, and end with 1 where an image failed, unless such are left out."""
    from mobilenets.data.images import find_images
    from mobilenets.data.video import Video
    from mobilenets.deploy.bulk import Bulk, predict_in_bulk

    for place in filter(Video.names, images):
        raise ValueError(f"{place}: --engine ray is for photos")
    done = predict_in_bulk(run, find_images(images), output, Bulk(**asked), **spread)
    if as_json:
        print_json(done.to_dict())
    through = (
        f" through {done.runtime}, {done.images_per_second:,.0f} images/s" if done.runtime else ""
    )
    note(f"{output}: {done.predicted:,} images predicted{through}, {done.skipped:,} there before")
    if done.failed:
        note(f"{done.failed:,} have an error in their row; --retry-failed predicts them again")
    if done.exit_code:
        note("stopped: the same command goes on")
        raise typer.Exit(done.exit_code)
    if done.failed and on_bad_image == "stop":
        raise typer.Exit(1)


def _place(image: Path | Frame) -> dict[str, Any]:
    from mobilenets.data.video import Frame

    if isinstance(image, Frame):
        return {"image": image.place, "seconds": round(image.seconds, 3)}
    return {"image": str(image)}


def _json_rows(runtime: str, image: Path | Frame, prediction: Prediction) -> list[dict[str, Any]]:
    return [{**_place(image), "runtime": runtime, **prediction.to_dict()}]


def _csv_rows(image: Path | Frame, prediction: Prediction) -> list[dict[str, Any]]:
    guesses = enumerate(prediction.rows(), start=1)
    return [{**_place(image), "rank": rank, **guess} for rank, guess in guesses]


def _geojson_rows(image: Path | Frame, prediction: Prediction) -> list[dict[str, Any]]:
    from mobilenets.tasks.geolocation.prediction import PlacePrediction

    assert isinstance(prediction, PlacePrediction)
    return prediction.features(_place(image))


def _tell_places(run: Run, finest: str | None, world_map: Path | None) -> WorldMap | None:
    """Let a run of geolocation tell places as closely as it is asked to; the map that they go on, if any."""
    from mobilenets.tasks.geolocation.prediction import finest_choice
    from mobilenets.tasks.geolocation.task import Geolocation

    assert isinstance(run.task, Geolocation)
    if finest is not None:
        run.task = run.task.telling(finest_choice(finest))
    if world_map is None:
        return None
    from mobilenets.web.map import WorldMap

    return WorldMap(world_map, str(run.spec))


def _draw(image: Path | Frame, prediction: Prediction, path: Path) -> None:
    prediction.draw(_picture(image)).save(path, quality=90)


def _picture(image: Path | Frame) -> Image.Image:
    from PIL import Image

    from mobilenets.data.images import read_image

    if isinstance(image, Path):
        return Image.fromarray(read_image(image).permute(1, 2, 0).numpy())
    return Image.fromarray(image.pixels_HWC)


def _plain(image: Path | Frame) -> str:
    """A file name that tells which image it is of."""
    if isinstance(image, Path):
        return image.stem
    return f"{Path(image.place).stem}-{image.seconds:.2f}s".replace(":", "-")
