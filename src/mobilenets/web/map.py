"""Where photos may have been taken, as a page with a map of the world that works without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from mobilenets.tasks.geolocation.cells import find_s2, id_of
from mobilenets.tasks.geolocation.prediction import FINEST, Finest, PlacePrediction
from mobilenets.training.task import Prediction
from mobilenets.web.pages import data_uri, embedded, page_file, render

THUMBNAIL = 160
# From a thousandth to one, light to dark in either scheme.
COLOURS = ((254, 224, 144), (253, 141, 60), (214, 47, 39), (103, 0, 31))


class WorldMap:
    """A page that shows, for each of some photos, the probability over the globe.

    Args:
        path: of the page.
        model: what it is called there.

    Raises:
        ValueError: no page can be written there.
        ImportError: S2 is not installed, and how to.
    """

    def __init__(self, path: Path, model: str) -> None:
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--map {path}: the name of a page ends in .html")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"--map {path}: there is no such folder")
        find_s2()
        self._path, self._model = path, model
        self._told: list[dict[str, Any]] = []

    def add(self, name: str, photo: Image.Image, prediction: Prediction) -> None:
        """Put a photo on the map, of which a small copy is kept."""
        assert isinstance(prediction, PlacePrediction)
        small = photo.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        told = {
            "name": name,
            "thumbnail": data_uri(small, "JPEG"),
            "place": [round(prediction.longitude, 4), round(prediction.latitude, 4)],
            "radius_km": round(prediction.radius_km, 1),
            "finest": prediction.finest,
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
        self._told.append(told)

    def write(self) -> None:
        """Write the page of at least one photo."""
        finest: Finest = self._told[0]["finest"]
        page = render(
            "map.html",
            model=self._model,
            finest_words=f"a {finest}, {FINEST[finest][1]:g} km",
            colours=[f"rgb({red} {green} {blue})" for red, green, blue in COLOURS],
            colours_json=embedded(COLOURS),
            script_array=_script("vendor/d3-array.min.js"),
            script_geo=_script("vendor/d3-geo.min.js"),
            script_topojson=_script("vendor/topojson-client.min.js"),
            script_world=_script("static/world.js"),
            world=_script("vendor/countries-110m.json"),
            answers=embedded(self._told),
        )
        self._path.write_text(page, encoding="utf-8")


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


def _script(path: str) -> Markup:
    """A file of this package that the page carries, as it is; none holds the end of a script."""
    return Markup(page_file(path).decode())  # noqa: S704
