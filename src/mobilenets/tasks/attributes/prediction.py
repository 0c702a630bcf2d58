"""What a model says about an image's attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mobilenets.training.task import Prediction


@dataclass(frozen=True)
class Answer:
    """An attribute, its probability, and from which one on the answer is yes."""

    label: str
    score: float
    threshold: float

    @property
    def yes(self) -> bool:
        """Whether the image has it."""
        return self.score >= self.threshold


@dataclass(frozen=True)
class AttributePrediction(Prediction):
    """An answer for each attribute, in the order of the labels."""

    answers: tuple[Answer, ...]

    @property
    def found(self) -> tuple[Answer, ...]:
        """Those that are yes, the surest first."""
        return tuple(sorted((one for one in self.answers if one.yes), key=lambda one: -one.score))

    def __str__(self) -> str:
        found = ", ".join(f"{one.label} {100 * one.score:.1f} %" for one in self.found)
        return found or "none of the attributes"

    def to_dict(self) -> dict[str, Any]:
        """`attributes`: label, score, threshold and answer of each."""
        return {
            "attributes": [
                {
                    "label": one.label,
                    "score": round(one.score, 6),
                    "threshold": round(one.threshold, 6),
                    "yes": one.yes,
                }
                for one in self.answers
            ]
        }

    def rows(self) -> list[dict[str, Any]]:
        """Label, score, threshold and answer of each attribute."""
        rows: list[dict[str, Any]] = self.to_dict()["attributes"]
        return rows

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with the attributes it has written along its lower edge."""
        drawn = image.convert("RGB")
        lines = [one.label for one in self.found] or ["-"]
        size = max(10, drawn.height // 14)
        font = ImageFont.load_default(size)
        pen = ImageDraw.Draw(drawn, "RGBA")
        top = drawn.height - 1.5 * size * len(lines)
        pen.rectangle((0, top, drawn.width, drawn.height), (0, 0, 0, 160))
        for number, line in enumerate(lines):
            pen.text((size // 3, top + (1.5 * number + 0.15) * size), line, "white", font)
        return drawn
