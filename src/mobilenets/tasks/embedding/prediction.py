"""What a model says about an image: where it stands among others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mobilenets.training.task import Prediction

# Colours of values below zero and above, which stay apart for people who see no red or green.
_BELOW, _ABOVE = np.array([33, 102, 172]), np.array([178, 24, 43])
_STRIPES = 1 / 12


@dataclass(frozen=True)
class EmbeddingPrediction(Prediction):
    """An embedding of length 1: the product of two is the cosine of the angle between them."""

    embedding: tuple[float, ...]

    def __str__(self) -> str:
        first = " ".join(f"{value:+.3f}" for value in self.embedding[:4])
        return f"{len(self.embedding)} values: {first} …"

    def to_dict(self) -> dict[str, Any]:
        """`embedding`: its values."""
        return {"embedding": [round(value, 6) for value in self.embedding]}

    def rows(self) -> list[dict[str, Any]]:
        """One row with a column for each value."""
        return [{f"e{place}": round(value, 6) for place, value in enumerate(self.embedding)}]

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with the values as stripes along its lower edge: blue below zero, red above."""
        drawn = image.convert("RGB")
        values_D = np.array(self.embedding)
        share_D1 = (np.abs(values_D) / max(float(np.abs(values_D).max()), 1e-12))[:, None]
        colours_D3 = np.where(values_D[:, None] < 0, _BELOW, _ABOVE) * share_D1 + 247 * (
            1 - share_D1
        )
        stripes = Image.fromarray(colours_D3.round().astype(np.uint8)[None])
        height = max(4, round(drawn.height * _STRIPES))
        stripes = stripes.resize((drawn.width, height), Image.Resampling.NEAREST)
        drawn.paste(stripes, (0, drawn.height - height))
        return drawn
