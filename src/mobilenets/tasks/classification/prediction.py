"""The labels a model finds most likely for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mobilenets.training.task import Prediction


@dataclass(frozen=True)
class Guess:
    """A label, its index, and its probability."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The most likely labels of an image, best first."""

    guesses: tuple[Guess, ...]

    @property
    def label(self) -> str:
        """The most likely label."""
        return self.guesses[0].label

    @property
    def score(self) -> float:
        """Its probability."""
        return self.guesses[0].score

    def __str__(self) -> str:
        return ", ".join(f"{guess.label} {100 * guess.score:.1f} %" for guess in self.guesses)

    def to_dict(self) -> dict[str, Any]:
        """`predictions`: label, index and score of each guess."""
        return {
            "predictions": [
                {"label": g.label, "index": g.index, "score": round(g.score, 6)}
                for g in self.guesses
            ]
        }

    def rows(self) -> list[dict[str, Any]]:
        """Label, index and score of each guess."""
        rows: list[dict[str, Any]] = self.to_dict()["predictions"]
        return rows

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with the first guess written along its lower edge."""
        drawn = image.convert("RGB")
        size = max(10, drawn.height // 14)
        font = ImageFont.load_default(size)
        pen = ImageDraw.Draw(drawn, "RGBA")
        pen.rectangle((0, drawn.height - 1.5 * size, drawn.width, drawn.height), (0, 0, 0, 160))
        text = f"{self.label} {100 * self.score:.0f} %"
        pen.text((size // 3, drawn.height - 1.35 * size), text, "white", font)
        return drawn
