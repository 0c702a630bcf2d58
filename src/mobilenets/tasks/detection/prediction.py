"""What a detector finds in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import batched_nms

from mobilenets.architecture.detector import Selection
from mobilenets.data.parts import Part
from mobilenets.training.task import Prediction

# A box that ends so near to an edge of a part, as a share of its side, is of something that goes on beyond it.
_EDGE = 0.04
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
            # All of the name is on the image, wherever the box is.
            left = max(0, min(left, drawn.width - round(pen.textlength(text, font))))
            place = (left, max(0, top - size - thick))
            pen.rectangle(pen.textbbox(place, text, font), fill=colour)
            pen.text(place, text, "white", font)
        return drawn


def join_parts(predictions: Sequence[Prediction], parts: Sequence[Part]) -> BoxPrediction:
    """What was found in an image and in parts of it, each thing once.

    What a part cuts off goes where another box of its class covers half of it: of the part that overlaps there, or of the whole.
    """
    if len(parts) == 1 and isinstance(predictions[0], BoxPrediction):
        return predictions[0]
    whole: list[Found] = []
    stubs: list[Found] = []
    for prediction, part in zip(predictions, parts, strict=True):
        assert isinstance(prediction, BoxPrediction)
        for found in prediction.objects:
            (stubs if _is_cut(found, part) else whole).append(_moved(found, part))
    kept = _selected(whole)
    for stub in sorted(stubs, key=lambda found: -found.score):
        if not any(_covers(found, stub) for found in kept):
            kept.append(stub)
    return BoxPrediction(tuple(sorted(kept, key=lambda found: -found.score)))


def _selected(objects: Sequence[Found]) -> list[Found]:
    if not objects:
        return []
    kept = batched_nms(
        torch.tensor([found.box for found in objects]),
        torch.tensor([found.score for found in objects]),
        torch.tensor([found.index for found in objects]),
        Selection().overlap,
    )
    return [objects[place] for place in kept.tolist()]


def _is_cut(found: Found, part: Part) -> bool:
    """Whether a thing in a part goes on beyond it."""
    left, top, right, bottom = found.box
    inner = (
        (left, part.left > 0),
        (top, part.top > 0),
        (1 - right, part.right < 1),
        (1 - bottom, part.bottom < 1),
    )
    return any(distance < _EDGE for distance, goes_on in inner if goes_on)


def _moved(found: Found, part: Part) -> Found:
    """A thing in a part as one in the whole."""
    left, top, right, bottom = found.box
    width, height = part.right - part.left, part.bottom - part.top
    box = (
        part.left + width * left,
        part.top + height * top,
        part.left + width * right,
        part.top + height * bottom,
    )
    return replace(found, box=box)


def _covers(found: Found, stub: Found) -> bool:
    """Whether half of a stub or more lies in another thing of its class."""
    left, top, right, bottom = stub.box
    across = min(right, found.box[2]) - max(left, found.box[0])
    down = min(bottom, found.box[3]) - max(top, found.box[1])
    shared = max(0.0, across) * max(0.0, down)
    return found.index == stub.index and shared >= (right - left) * (bottom - top) / 2
