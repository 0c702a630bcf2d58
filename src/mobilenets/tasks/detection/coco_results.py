"""Predictions as COCO's results, which its own tools score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenets.data.boxes import open_boxes
from mobilenets.tasks.detection.prediction import BoxPrediction


class CocoResults:
    """Results with the numbers that an annotation file gives images and classes.

    Args:
        file: COCO's JSON.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        source = open_boxes(file)
        self._classes = dict(zip(source.labels, source.ids, strict=True))
        self._images = {
            path.name: (number, size)
            for split in source.splits.values()
            for path, number, size in zip(split.images.paths, split.ids, split.sizes, strict=True)
        }

    def rows(self, image: Path, prediction: BoxPrediction) -> list[dict[str, Any]]:
        """`image_id`, `category_id`, `bbox` (left, top, width, height in pixels) and `score` of each box.

        Classes that the file does not have are left out.

        Raises:
            ValueError: the file does not have the image.
        """
        if image.name not in self._images:
            raise ValueError(f"{self._file} has no image {image.name}")
        number, (height, width) = self._images[image.name]
        rows = []
        for found in prediction.objects:
            if found.label not in self._classes:
                continue
            left, top, right, bottom = found.box
            sides = (width * left, height * top, width * (right - left), height * (bottom - top))
            rows.append(
                {
                    "image_id": number,
                    "category_id": self._classes[found.label],
                    "bbox": [round(side, 2) for side in sides],
                    "score": round(found.score, 5),
                }
            )
        return rows
