"""Parts of large images, which a detector looks at one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

OVERLAP = 1 / 3


@dataclass(frozen=True)
class Part:
    """A part of an image, as shares of its width and height."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def cut(self, pixels_CHW: Tensor) -> Tensor:
        """What lies in it."""
        _, height, width = pixels_CHW.shape
        top, bottom = (round(height * side) for side in (self.top, self.bottom))
        left, right = (round(width * side) for side in (self.left, self.right))
        return pixels_CHW[:, top:bottom, left:right]


def parts_of(width: int, height: int, side: int) -> tuple[Part, ...]:
    """The whole image and, where it is larger, parts of that side that cover it, each over a third of the next at least.

    >>> parts = parts_of(500, 300, 300)
    >>> [(round(500 * part.left), round(500 * part.right)) for part in parts]
    [(0, 500), (0, 300), (200, 500)]
    """
    if width <= side and height <= side:
        return (Part(),)
    across, down = min(side, width), min(side, height)
    parts = [
        Part(left / width, top / height, (left + across) / width, (top + down) / height)
        for top in _starts(height, side)
        for left in _starts(width, side)
    ]
    return (Part(), *parts)


def _starts(length: int, side: int) -> list[int]:
    """Where parts begin that cover a length."""
    rest = max(0, length - side)
    count = math.ceil(rest / (side * (1 - OVERLAP)))
    return [round(rest * number / count) for number in range(count + 1)] if count else [0]
