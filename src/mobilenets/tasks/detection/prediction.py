"""What a detector finds in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mobilenets.training.task import Prediction

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass(frozen=True)
class Found:
    """A thing: label, its index, how sure it is, and where it is: left, top, right, bottom as shares of the sides."""

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxPrediction(Prediction):
    """What was found in an image, the surest first."""

    objects: tuple[Found, ...]

    def __str__(self) -> str:
        if not self.objects:
            return "nothing found"
        return ", ".join(f"{found.label} {100 * found.score:.0f} %" for found in self.objects)

    def to_dict(self) -> dict[str, Any]:
        """`predictions`: label, index, score and box of each thing; boxes as shares of width and height."""
        return {
            "predictions": [
                {
                    "label": found.label,
                    "index": found.index,
                    "score": round(found.score, 6),
                    "box": [round(side, 5) for side in found.box],
                }
                for found in self.objects
            ]
        }

    def rows(self) -> list[dict[str, Any]]:
        """Label, index, score, left, top, right and bottom of each thing."""
        rows = []
        for row in self.to_dict()["predictions"]:
            sides = zip(("left", "top", "right", "bottom"), row.pop("box"), strict=True)
            rows.append({**row, **dict(sides)})
        return rows

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with a box, a name and a score for each thing."""
        drawn = image.convert("RGB")
        thick = max(1, round(min(drawn.size) / 150))
        size = max(10, drawn.height // 24)
        font = ImageFont.load_default(size)
        pen = ImageDraw.Draw(drawn)
        # The surest last, on top of the others.
        for found in reversed(self.objects):
            colour = _COLOURS[found.index % len(_COLOURS)]
            left, top, right, bottom = (
                round(side * whole) for side, whole in zip(found.box, drawn.size * 2, strict=True)
            )
            pen.rectangle(
                (left, top, max(left, right), max(top, bottom)), outline=colour, width=thick
            )
            text = f"{found.label} {100 * found.score:.0f} %"
            place = (left, max(0, top - size - thick))
            pen.rectangle(pen.textbbox(place, text, font), fill=colour)
            pen.text(place, text, "white", font)
        return drawn
