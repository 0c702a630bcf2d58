"""Mean average precision as COCO and as Pascal VOC count it.

Shapes: N images, M boxes found or told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from mobilenets.data.box_loader import AREA, IGNORED, LABEL
from mobilenets.data.loaders import Batch
from mobilenets.tasks.detection.boxes import Objects

FIGURES = ("map", "map50", "map75", "loss")
_OVERLAP = 0.5
# Of one image, in pixels, as torchmetrics takes them.
_Boxes = dict[str, Tensor]


class DetectionMetrics:
    """`map` over overlaps from 0.5 to 0.95 (COCO), `map50` and `map75` at these, and the loss of training.

    Args:
        labels: class names by index.
        find: what a batch of outputs says, image by image.
        lose: the loss of a batch of outputs, against told boxes (N, M, columns).
    """

    def __init__(
        self,
        labels: Sequence[str],
        find: Callable[[Tensor], list[Objects]],
        lose: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        # torchmetrics takes seconds to import, and prediction does not need it.
        from torchmetrics import MeanMetric

        self._labels = tuple(labels)
        self._find, self._lose = find, lose
        self._images: list[tuple[_Boxes, _Boxes]] = []
        self._loss = MeanMetric(nan_strategy="disable")
        self._computed: dict[str, Any] = {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch of a detector's outputs."""
        outputs, told_NMD = outputs.float().cpu(), batch.targets_N.cpu()
        assert batch.sizes_N2 is not None
        for objects, rows_MD, size_2 in zip(
            self._find(outputs), told_NMD, batch.sizes_N2, strict=True
        ):
            self._images.append((_found(objects, size_2), _told(rows_MD, size_2)))
        self._loss.update(self._lose(outputs, told_NMD), weight=len(batch))

    def compute(self) -> dict[str, float]:
        """The four figures, over all processes; 0 where nothing is told."""
        from torchmetrics.detection import MeanAveragePrecision

        self._images = _of_all_processes(self._images)
        precision = MeanAveragePrecision(
            class_metrics=True, backend="pycocotools", sync_on_compute=False
        )
        precision.warn_on_many_detections = False
        precision.update([found for found, _ in self._images], [told for _, told in self._images])
        self._computed = dict(precision.compute())
        names = {"map": "map", "map50": "map_50", "map75": "map_75"}
        figures = {name: max(0.0, self._computed[key].item()) for name, key in names.items()}
        return {**figures, "loss": self._loss.compute().item()}

    def details(self) -> dict[str, Any]:
        """`sizes`: COCO's mAP of small, medium and large objects; `classes`: mAP and VOC's AP of each class;
        `voc_map50`: their mean, difficult objects left out. None where there is no such object.
        """
        assert self._computed, "compute comes first"
        places = self._computed["classes"].view(-1).tolist()
        precise = self._computed["map_per_class"].view(-1).tolist()
        by_class = dict(zip(map(int, places), precise, strict=True))
        voc = voc_precisions(self._images, len(self._labels))
        told = [value for value in voc if value is not None]
        return {
            "sizes": {
                size: _share(self._computed[f"map_{size}"].item())
                for size in ("small", "medium", "large")
            },
            "classes": {
                label: {"map": _share(by_class.get(index, -1.0)), "voc_ap50": voc[index]}
                for index, label in enumerate(self._labels)
            },
            "voc_map50": sum(told) / len(told) if told else None,
        }


def _of_all_processes(images: list[tuple[_Boxes, _Boxes]]) -> list[tuple[_Boxes, _Boxes]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return images
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, images)
    return [image for part in gathered for image in part]


def _share(value: float) -> float | None:
    return None if value < 0 else value


def _in_pixels(boxes_M4: Tensor, size_2: Tensor) -> Tensor:
    return boxes_M4 * size_2.flip(0).repeat(2)


def _found(objects: Objects, size_2: Tensor) -> _Boxes:
    boxes_M4 = _in_pixels(objects.boxes_M4, size_2)
    return {"boxes": boxes_M4, "scores": objects.scores_M, "labels": objects.labels_M}


def _told(rows_MD: Tensor, size_2: Tensor) -> _Boxes:
    rows_MD = rows_MD[rows_MD[:, LABEL] >= 0]
    return {
        "boxes": _in_pixels(rows_MD[:, :4], size_2),
        "labels": rows_MD[:, LABEL].long(),
        "iscrowd": rows_MD[:, IGNORED].long(),
        "area": rows_MD[:, AREA],
    }


def voc_precisions(images: Sequence[tuple[_Boxes, _Boxes]], classes: int) -> list[float | None]:
    """Average precision of each class as Pascal VOC counts it since 2010: the area under precision against recall.

    A box is right when it overlaps by more than half with an object of its class that no better one has found. What is
    difficult counts neither way.

    Args:
        images: of each what was found and what is told.

    >>> box, far = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[50.0, 50, 60, 60]])
    >>> zero = torch.tensor([0])
    >>> told = {"boxes": box, "labels": zero, "iscrowd": zero}
    >>> voc_precisions([({"boxes": box, "scores": torch.tensor([1.0]), "labels": zero}, told)], 2)
    [1.0, None]
    >>> both = torch.cat([far, box])
    >>> found = {"boxes": both, "scores": torch.tensor([0.9, 0.5]), "labels": zero.repeat(2)}
    >>> voc_precisions([(found, told)], 1)
    [0.5]
    """
    precisions: list[float | None] = []
    for number in range(classes):
        ranked: list[tuple[float, bool]] = []
        count = 0
        for found, told in images:
            mine_M, theirs_M = found["labels"] == number, told["labels"] == number
            ignored_M = told["iscrowd"][theirs_M].bool()
            count += int((~ignored_M).sum())
            ranked += _judged(
                found["boxes"][mine_M], found["scores"][mine_M], told["boxes"][theirs_M], ignored_M
            )
        precisions.append(_area(ranked, count) if count else None)
    return precisions


def _judged(
    boxes_M4: Tensor, scores_M: Tensor, told_M4: Tensor, ignored_M: Tensor
) -> list[tuple[float, bool]]:
    """Score and whether it is right, of each box that counts."""
    ranked, taken = [], set()
    overlaps = box_iou(boxes_M4, told_M4) if len(told_M4) else torch.zeros(len(boxes_M4), 1)
    for place in scores_M.argsort(descending=True, stable=True).tolist():
        best = int(overlaps[place].argmax())
        hit = float(overlaps[place, best]) > _OVERLAP
        if hit and bool(ignored_M[best]):
            continue
        ranked.append((float(scores_M[place]), hit and best not in taken))
        if hit:
            taken.add(best)
    return ranked


def _area(ranked: Sequence[tuple[float, bool]], count: int) -> float:
    right: NDArray[np.bool_] = np.array(
        [is_right for _, is_right in sorted(ranked, key=lambda row: -row[0])], dtype=bool
    )
    hits = right.cumsum()
    precision = hits / np.arange(1, len(right) + 1)
    # The best that may be had at this recall or any higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / count)
