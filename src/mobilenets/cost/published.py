"""ImageNet accuracies published for the 16 models of Figures 4 and 5, each with its source.

Sources: the paper's Tables 4 to 9; `mobilenet_v1.md` of TensorFlow-Slim, in its version of
2017-06-14 and in that of 2018-02-22 with the quantised models.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobilenets.architecture.spec import MobileNetSpec

SOURCES = {
    "paper": "Howard et al. 2017, Tables 4 to 9",
    "slim-2017": "TensorFlow-Slim mobilenet_v1.md, 2017-06-14",
    "slim-2018": "TensorFlow-Slim mobilenet_v1.md, 2018-02-22",
    "slim-2018-int8": "TensorFlow-Slim mobilenet_v1.md, 2018-02-22, quantised",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """Top-1 and top-5 in percent, as printed; None where a source has no figure."""

    width: float
    resolution: int
    paper_top1: float | None
    slim_2017_top1: float
    slim_2017_top5: float
    slim_2018_top1: float
    slim_2018_top5: float
    slim_2018_int8_top1: float
    slim_2018_int8_top5: float

    @property
    def spec(self) -> MobileNetSpec:
        """The member of the family that the figures belong to."""
        return MobileNetSpec(self.width, self.resolution)

    def top1(self, *, int8: bool = False) -> float:
        """The newest complete figure: 2018, float or quantised."""
        return self.slim_2018_int8_top1 if int8 else self.slim_2018_top1


def _row(width: float, resolution: int, paper: float | None, *slim: float) -> Published:
    return Published(
        width=width,
        resolution=resolution,
        paper_top1=paper,
        slim_2017_top1=slim[0],
        slim_2017_top5=slim[1],
        slim_2018_top1=slim[2],
        slim_2018_top5=slim[3],
        slim_2018_int8_top1=slim[4],
        slim_2018_int8_top5=slim[5],
    )


PUBLISHED: tuple[Published, ...] = (
    _row(1.0, 224, 70.6, 70.7, 89.5, 70.9, 89.9, 69.7, 89.5),
    _row(1.0, 192, 69.1, 69.3, 88.9, 70.0, 89.2, 69.0, 88.9),
    _row(1.0, 160, 67.2, 67.2, 87.5, 68.0, 87.7, 67.3, 87.7),
    _row(1.0, 128, 64.4, 64.1, 85.3, 65.2, 85.8, 64.0, 85.5),
    _row(0.75, 224, 68.4, 68.4, 88.2, 68.4, 88.2, 67.9, 88.1),
    _row(0.75, 192, None, 67.4, 87.3, 67.2, 87.3, 66.2, 87.1),
    _row(0.75, 160, None, 65.2, 86.1, 65.3, 86.0, 63.9, 85.5),
    _row(0.75, 128, None, 61.8, 83.6, 62.1, 83.9, 59.8, 82.8),
    _row(0.5, 224, 63.7, 64.0, 85.4, 63.3, 84.9, 62.2, 84.5),
    _row(0.5, 192, None, 62.1, 84.0, 61.7, 83.6, 60.4, 83.2),
    _row(0.5, 160, 60.2, 59.9, 82.5, 59.1, 81.9, 57.7, 81.3),
    _row(0.5, 128, None, 56.2, 79.6, 56.3, 79.4, 54.9, 78.9),
    _row(0.25, 224, 50.6, 50.6, 75.0, 49.8, 74.2, 48.2, 73.8),
    _row(0.25, 192, None, 49.0, 73.6, 47.7, 72.3, 45.8, 71.9),
    _row(0.25, 160, None, 46.0, 70.7, 45.5, 70.3, 43.5, 69.1),
    _row(0.25, 128, None, 41.3, 66.2, 41.5, 66.3, 39.9, 65.8),
)
