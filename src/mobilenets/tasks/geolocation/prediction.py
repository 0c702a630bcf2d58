"""Where a model says that a photo was taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

from mobilenets.training.task import Prediction

Finest = Literal["city", "region", "country"]
# Level of S2 whose cells are about as large, and km.
FINEST: dict[Finest, tuple[int, float]] = {"city": (8, 25), "region": (5, 200), "country": (3, 750)}
TOP = 5


def finest_choice(text: str) -> Finest:
    """Check the value of `--finest`.

    Raises:
        ValueError: it is none.
    """
    for known in FINEST:
        if text == known:
            return known
    raise ValueError(f"--finest is {', '.join(FINEST)}, not {text!r}")


@dataclass(frozen=True)
class CellGuess:
    """A cell, by the token that S2 gives it, the mean place of its photos, and its probability."""

    token: str
    latitude: float
    longitude: float
    score: float


@dataclass(frozen=True)
class PlacePrediction(Prediction):
    """The likeliest cell's mean place, how far around it the probability reaches, and the cells that have it.

    Args:
        cells: the likeliest first, those of at least a thousandth.
        radius_km: around the first cell's place, in which cells of 90 % of the probability lie.
        finest: how small a cell is told at most.
    """

    cells: tuple[CellGuess, ...]
    radius_km: float
    finest: Finest

    @property
    def latitude(self) -> float:
        """Of the answer, in degrees."""
        return self.cells[0].latitude

    @property
    def longitude(self) -> float:
        """Of the answer, in degrees."""
        return self.cells[0].longitude

    def __str__(self) -> str:
        return (
            f"{written(self.latitude, self.longitude)} within {self.radius_km:,.0f} km "
            f"({self.finest}, {100 * self.cells[0].score:.1f} %)"
        )

    def to_dict(self) -> dict[str, Any]:
        """`location`, `radius_km`, `finest`, and `predictions`: the five likeliest cells with their places and scores."""
        return {
            "location": {"lat": round(self.latitude, 4), "lon": round(self.longitude, 4)},
            "radius_km": round(self.radius_km, 1),
            "finest": self.finest,
            "predictions": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Cell, latitude, longitude and score of the five likeliest."""
        return [
            {
                "cell": cell.token,
                "lat": round(cell.latitude, 4),
                "lon": round(cell.longitude, 4),
                "score": round(cell.score, 6),
            }
            for cell in self.cells[:TOP]
        ]

    def features(self, image: Mapping[str, Any]) -> list[dict[str, Any]]:
        """GeoJSON's features (RFC 7946): a point for each of the five likeliest cells.

        Args:
            image: which one it is of, for the properties.
        """
        return [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [row["lon"], row["lat"]]},
                "properties": {
                    **image,
                    "rank": rank,
                    "score": row["score"],
                    "cell": row["cell"],
                    **(
                        {"radius_km": round(self.radius_km, 1), "finest": self.finest}
                        if rank == 1
                        else {}
                    ),
                },
            }
            for rank, row in enumerate(self.rows(), start=1)
        ]

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with the answer written along its lower edge."""
        drawn = image.convert("RGB")
        size = max(10, drawn.height // 18)
        font = ImageFont.load_default(size)
        pen = ImageDraw.Draw(drawn, "RGBA")
        pen.rectangle((0, drawn.height - 1.5 * size, drawn.width, drawn.height), (0, 0, 0, 160))
        text = f"{written(self.latitude, self.longitude)} ± {self.radius_km:,.0f} km"
        pen.text((size // 3, drawn.height - 1.35 * size), text, "white", font)
        return drawn


def written(latitude: float, longitude: float) -> str:
    """A place as people write it.

    >>> written(48.86, -2.35)
    '48.9° N, 2.4° W'
    """
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.1f}° {north}, {abs(longitude):.1f}° {east}"
