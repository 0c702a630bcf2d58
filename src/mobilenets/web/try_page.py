"""A page to try a run with: its exported model in a browser, on pictures and what a camera sees, which never leave the device."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageDraw

from mobilenets.data.files import check_replaceable, folder_aside, publish, read_json
from mobilenets.data.images import MOST_PIXELS
from mobilenets.deploy.bundle import proven_file
from mobilenets.deploy.target import FLOAT, INT8, TARGETS
from mobilenets.tasks.attributes.task import Attributes
from mobilenets.tasks.detection.task import TOLD
from mobilenets.tasks.geolocation.prediction import FINEST
from mobilenets.tasks.geolocation.task import Geolocation
from mobilenets.training.run import Run
from mobilenets.training.task import Task
from mobilenets.web.map import COLOURS, ring_of
from mobilenets.web.pages import embedded, page_file, render
from mobilenets.web.server import Page

# The version in the name lets browsers keep the files for good.
RUNTIME = "onnxruntime-1.30.0"
CPU_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
GPU_FILES = ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm")  # fmt: skip
MAP, MAP_FILES = "world.js", ("d3-array.min.js", "d3-geo.min.js", "topojson-client.min.js")
SCRIPTS = ("start.js", "app.js", "answers.js", "picture.js", "worker.js", "style.css")
INDEX, MODEL, NETWORK, WORKER = "index.html", "model.json", "model.onnx", "service-worker.js"
# Table heads of the answers.
HEADS = {
    "classification": ("class", "probability"),
    "attributes": ("attribute", "probability", "answer"),
    "detection": ("thing", "score", "left top right bottom"),
    "embedding": ("", "value"),
    "geolocation": ("cell", "place", "probability"),
}
ICON_SIDES = (192, 512)


def try_pages(run: Run, *, int8: bool = False) -> dict[str, Page]:
    """The files of the page by their names; `index.html` is the page.

    Args:
        int8: takes the export in 8-bit integers, a quarter as large.

    Raises:
        ValueError: there is no export to ONNX of these weights that was proven, or it gives raw boxes.
        ImportError: a run of geolocation needs S2, and how to install it.
    """
    network = _network(run, int8=int8)
    name = f"{run.spec}, {INT8}" if int8 else str(run.spec)
    model = {
        "name": name,
        "task": run.task.name,
        "labels": list(run.labels),
        "preprocessing": run.preprocessing.to_dict(),
        "file": NETWORK,
        "bytes": len(network),
        "sha256": hashlib.sha256(network).hexdigest(),
        "most_pixels": MOST_PIXELS,
        **reading(run.task),
    }
    maps = {}
    if run.task.name == "geolocation":
        maps = {script: page_file(f"vendor/{script}") for script in MAP_FILES}
        maps[MAP] = page_file(f"static/{MAP}")
    page = render(
        "try.html",
        name=run.spec,
        task=run.task.name,
        what=_what(run),
        runtime=RUNTIME,
        heads=HEADS[run.task.name],
        slots=("First picture", "Second picture") if run.task.name == "embedding" else ("Picture",),
        scripts=list(maps),
    )
    files = {
        INDEX: page.encode(),
        MODEL: json.dumps(model, ensure_ascii=False).encode(),
        "manifest.webmanifest": _manifest(str(run.spec)),
        "licences.txt": page_file("vendor/LICENSES.txt"),
        **{script: page_file(f"static/{script}") for script in SCRIPTS},
        **maps,
        **{f"icon-{side}.png": _icon(side) for side in ICON_SIDES},
    }
    # The page asks for its model by its content too, which therefore never changes.
    kept = ["./" if path == INDEX else path for path in files]
    kept += [f"{NETWORK}?{model['sha256'][:12]}", *(f"{RUNTIME}/{part}" for part in CPU_FILES)]
    files[NETWORK] = network
    files |= {f"{RUNTIME}/{part}": page_file(f"vendor/{part}") for part in CPU_FILES + GPU_FILES}
    version = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    files[WORKER] = render(
        WORKER,
        version=embedded(version),
        files=embedded(kept),
        # The GPU's runtime is kept once it was used.
        on_use=embedded([f"{RUNTIME}/{part}" for part in GPU_FILES]),
    ).encode()
    return {path: Page.named(path, content) for path, content in files.items()}


def _network(run: Run, *, int8: bool) -> bytes:
    """The exported model.

    Raises:
        ValueError: there is none of these weights that was proven, or it gives raw boxes.
    """
    found = proven_file(run, TARGETS["onnx"], INT8 if int8 else FLOAT)
    again = f"mobilenets export {run.folder} --to onnx{' --int8' if int8 else ''} --overwrite"
    if found is None:
        raise ValueError(f"{run.folder} has no export of its weights that was proven: {again}")
    file, form = found
    if form == "boxes":
        raise ValueError(f"{file} gives all boxes, and a page shows the best: {again}")
    return file.read_bytes()


def served(pages: Mapping[str, Page]) -> dict[str, Page]:
    """The same by the paths that a server has them at.

    >>> list(served({"index.html": Page("text/html", b"")}))
    ['/index.html', '/']
    """
    return {f"/{path}": page for path, page in pages.items()} | {"/": pages[INDEX]}


def write_pages(pages: Mapping[str, Page], folder: Path, *, overwrite: bool = False) -> None:
    """Write the page's folder, whole or not at all.

    Raises:
        ValueError: the folder holds something else, or a page that may not be replaced.
    """
    folder = folder.resolve()
    ours: set[str] | None = None
    if _is_model(folder / MODEL):
        ours = {PurePosixPath(path).parts[0] for path in (*pages, *MAP_FILES, MAP)}
        # Also of another version.
        ours |= {path.name for path in folder.glob("onnxruntime-*")}
    check_replaceable(folder, "a page", ours, overwrite=overwrite)
    with folder_aside(folder) as aside:
        for path, page in pages.items():
            (aside / path).parent.mkdir(exist_ok=True)
            (aside / path).write_bytes(page.content)
        publish(aside, folder)


def _is_model(path: Path) -> bool:
    try:
        return "most_pixels" in read_json(path)
    except ValueError:
        return False


def _what(run: Run) -> str:
    """What the model does, as a sentence's beginning."""
    many = f"{len(run.labels):,}"
    return {
        "classification": f"Tells which of {many} classes a picture shows",
        "attributes": f"Answers {many} questions about a picture",
        "detection": f"Finds things of {many} classes",
        "embedding": "Tells how much alike two pictures are",
        "geolocation": "Guesses where a photo was taken; a guess, not evidence",
    }[run.task.name]


def reading(task: Task) -> dict[str, Any]:
    """What the page needs to read outputs of a task, besides its labels.

    Raises:
        ImportError: a task of geolocation needs S2, and how to install it.
    """
    if task.name == "detection":
        return {"score": TOLD}
    if isinstance(task, Attributes):
        return {"thresholds": task.to_dict()["thresholds"]}
    if isinstance(task, Geolocation):
        # The labels are of the finest cells, and the page tells larger ones, with coarse places.
        return {
            "labels": [],
            "cells": _cells(task),
            "colours": COLOURS,
            "world": json.loads(page_file("vendor/countries-110m.json")),
        }
    return {}


def _cells(task: Geolocation) -> dict[str, Any]:
    told, told_K, places_M2 = task.told_cells()
    finest = task.finest
    return {
        "temperature": task.to_dict()["temperature"],
        "sizes": [len(level) for level in task.cells.levels],
        "parents": [parents_K.tolist() for parents_K in task.cells.parents],
        "told_of": told_K.tolist(),
        "told": [
            {
                "token": token,
                "place": [round(longitude, 4), round(latitude, 4)],
                "spread_km": round(spread, 1),
                "ring": ring_of(token),
            }
            for token, (latitude, longitude), spread in zip(
                told.tokens, places_M2, told.spread_K.tolist(), strict=True
            )
        ],
        "finest": finest,
        "least_km": FINEST[finest][1],
    }


def _manifest(name: str) -> bytes:
    """What a browser needs to install the page."""
    return json.dumps(
        {
            "name": f"Try {name}",
            "short_name": name,
            "start_url": "./",
            "scope": "./",
            "display": "standalone",
            "background_color": "#ffffff",
            "theme_color": "#0b6b58",
            "icons": [
                {
                    "src": f"icon-{side}.png",
                    "sizes": f"{side}x{side}",
                    "type": "image/png",
                    "purpose": "any maskable",
                }
                for side in ICON_SIDES
            ],
        }
    ).encode()


def _icon(side: int) -> bytes:
    """Feature maps that grow smaller and deeper."""
    icon = Image.new("RGB", (side, side), "#0b6b58")
    pen = ImageDraw.Draw(icon)
    for left, width, height in ((0.2, 0.08, 0.56), (0.32, 0.13, 0.42), (0.49, 0.31, 0.24)):
        box = (left, 0.5 - height / 2, left + width, 0.5 + height / 2)
        pen.rounded_rectangle([side * edge for edge in box], side / 40, fill="white")
    encoded = io.BytesIO()
    icon.save(encoded, "PNG")
    return encoded.getvalue()
