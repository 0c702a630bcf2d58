"""An image beside those that are like it, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from mobilenets.data.images import read_image

SIDE, GAP, LINE = 160, 8, 18


def draw_sheet(image: Path, found: Sequence[tuple[Path, float]], path: Path) -> None:
    """Draw an image, a gap, and what was found with its cosines."""
    width = (len(found) + 1) * (SIDE + GAP) + 2 * GAP
    sheet = Image.new("RGB", (width, SIDE + 2 * GAP + LINE), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (file, told) in enumerate([(image, "asked"), *((f, f"{c:.3f}") for f, c in found)]):
        picture = Image.fromarray(read_image(file).permute(1, 2, 0).numpy())
        left = GAP + place * (SIDE + GAP) + (GAP if place else 0)
        sheet.paste(ImageOps.pad(picture, (SIDE, SIDE), color="white"), (left, GAP))
        pen.text((left, GAP + SIDE + 4), told, fill="black")
    sheet.save(path, quality=90)
