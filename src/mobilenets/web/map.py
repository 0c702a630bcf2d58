"""Where photos may have been taken, as a page with a map of the world that works without a network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from mobilenets.tasks.geolocation.cells import find_s2, id_of
from mobilenets.tasks.geolocation.prediction import FINEST, PlacePrediction
from mobilenets.web.pages import data_uri, embedded, render

THUMBNAIL = 160
# From a thousandth to one, light to dark in either scheme.
COLOURS = ((254, 224, 144), (253, 141, 60), (214, 47, 39), (103, 0, 31))


def write_map(
    path: Path, model: str, answers: Sequence[tuple[str, Image.Image, PlacePrediction]]
) -> None:
    """Write a page that shows, for each of some photos, the probability over the globe.

    Args:
        model: what the page calls it.
        answers: a name, the photo, and what was predicted; at least one.

    Raises:
        ImportError: S2 is not installed, and how to.
    """
    finest = answers[0][2].finest
    told = [_told(name, photo, prediction) for name, photo, prediction in answers]
    page = render(
        "map.html",
        model=model,
        finest_words=f"a {finest}, {FINEST[finest][1]:g} km",
        colours=[f"rgb({red} {green} {blue})" for red, green, blue in COLOURS],
        colours_json=embedded(COLOURS),
        script_array=_vendored("d3-array.min.js"),
        script_geo=_vendored("d3-geo.min.js"),
        script_topojson=_vendored("topojson-client.min.js"),
        world=_vendored("countries-110m.json"),
        answers=embedded(told),
    )
    path.write_text(page, encoding="utf-8")


def _told(name: str, photo: Image.Image, prediction: PlacePrediction) -> dict[str, Any]:
    small = photo.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return {
        "name": name,
        "thumbnail": data_uri(small, "JPEG"),
        "place": [round(prediction.longitude, 4), round(prediction.latitude, 4)],
        "radius_km": round(prediction.radius_km, 1),
        "cells": [
            {
                "token": cell.token,
                "place": [round(cell.longitude, 4), round(cell.latitude, 4)],
                "score": round(cell.score, 6),
                "ring": ring_of(cell.token),
            }
            for cell in prediction.cells
        ],
    }


def ring_of(token: str) -> list[list[float]]:
    """The four corners of a cell, longitude and latitude, counter-clockwise.

    Raises:
        ImportError: S2 is not installed, and how to.

    >>> ring_of("1")
    [[-45.0, -35.2644], [45.0, -35.2644], [45.0, 35.2644], [-45.0, 35.2644]]
    """
    s2 = find_s2()
    cell = s2.S2Cell(s2.S2CellId(id_of(token)))
    corners = [s2.S2LatLng(cell.GetVertex(corner)) for corner in range(4)]
    return [[round(at.lng().degrees(), 4), round(at.lat().degrees(), 4)] for at in corners]


def _vendored(name: str) -> Markup:
    """A file that the pages carry, as it is; none holds the end of a script."""
    return Markup((files("mobilenets.web") / "vendor" / name).read_text(encoding="utf-8"))  # noqa: S704
