"""Predictions as COCO's results, which its own tools score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenets.data.files import read_json
from mobilenets.data.video import Frame
from mobilenets.tasks.detection.prediction import BoxPrediction
from mobilenets.training.task import Prediction


class CocoResults:
    """Results with the numbers that COCO's JSON gives images and classes; it need not tell any box.

    Args:
        file: COCO's JSON.
        labels: the classes that are predicted.

    Raises:
        ValueError: it is none, or has none of the classes.
    """

    def __init__(self, file: Path, labels: Sequence[str]) -> None:
        self._file = file
        content = read_json(file)
        self._images: dict[str, list[dict[str, Any]]] = {}
        try:
            self._classes = {str(row["name"]): int(row["id"]) for row in content["categories"]}
            for row in content["images"]:
                image: dict[str, Any] = {key: int(row[key]) for key in ("id", "width", "height")}
                image["name"] = Path(str(row["file_name"]))
                self._images.setdefault(image["name"].name, []).append(image)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: not COCO's JSON ({error})") from None
        if not self._classes.keys() & set(labels):
            raise ValueError(
                f"{file} has none of the classes that are predicted, such as {labels[0]}"
            )

    def rows(self, image: Path | Frame, prediction: Prediction) -> list[dict[str, Any]]:
        """`image_id`, `category_id`, `bbox` (left, top, width, height in pixels) and `score` of each box.

        Classes that the file does not have are left out.

        Raises:
            ValueError: the file does not have the image, or several that may be it.
        """
        assert isinstance(image, Path)
        assert isinstance(prediction, BoxPrediction)
        told = self._images.get(image.name, [])
        if len(told) > 1:
            told = [
                row for row in told if image.parts[-len(row["name"].parts) :] == row["name"].parts
            ]
        if len(told) != 1:
            raise ValueError(f"{self._file} has {len(told) or 'no'} image {image.name}")
        (row,) = told
        width, height = row["width"], row["height"]
        rows = []
        for found in prediction.objects:
            if found.label not in self._classes:
                continue
            left, top, right, bottom = found.box
            sides = (width * left, height * top, width * (right - left), height * (bottom - top))
            rows.append(
                {
                    "image_id": row["id"],
                    "category_id": self._classes[found.label],
                    "bbox": [round(side, 2) for side in sides],
                    "score": round(found.score, 5),
                }
            )
        return rows
