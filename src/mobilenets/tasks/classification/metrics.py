"""Accuracy, cross-entropy, calibration and confusion over an evaluation.

Shapes: N images, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mobilenets.data.loaders import Batch

FIGURES = ("top1", "top5", "loss", "class_top1", "calibration_error")


def interval(right: int, images: int) -> tuple[float, float]:
    """Where a share lies with 95 %: Wilson's score interval.

    >>> [round(end, 3) for end in interval(45, 50)]
    [0.786, 0.957]
    """
    from scipy.stats import binomtest

    found = binomtest(right, images).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


class ClassificationMetrics:
    """`top1` and `top5` as shares, `loss` as mean cross-entropy in nats, and two more.

    `class_top1` is the mean over the classes that have images of their own top-1;
    `calibration_error` is the expected one over 15 bins of confidence. With fewer than five outputs,
    top-5 counts as many as there are.

    Args:
        labels: class names by index.
        outputs: logits, at least as many as labels.
    """

    def __init__(self, labels: Sequence[str], outputs: int | None = None) -> None:
        # torchmetrics takes seconds to import, and prediction does not need it.
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

        from mobilenets.tasks.classification.calibration import Reliability

        self._labels = tuple(labels)
        outputs = outputs or len(labels)
        self._confusion = MulticlassConfusionMatrix(outputs)
        self._top5 = MulticlassAccuracy(outputs, average="micro", top_k=min(5, outputs))
        self._loss = MeanMetric(nan_strategy="disable")
        self._reliability = Reliability()
        self._right = self._images = 0
        self._confusion_KK: Tensor | None = None
        self._reliability_B3: Tensor | None = None

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch of logits (N, K)."""
        logits_NK, targets_N = outputs.float().cpu(), batch.targets_N.cpu()
        self._confusion.update(logits_NK, targets_N)
        self._top5.update(logits_NK, targets_N)
        self._loss.update(F.cross_entropy(logits_NK, targets_N, reduction="none"))
        self._reliability.update(logits_NK.softmax(1), targets_N)

    def compute(self) -> dict[str, float]:
        """The five figures, over all processes."""
        confusion_KK = self._confusion_KK = self._confusion.compute().double()
        self._reliability_B3 = self._reliability.compute()
        right_K, images_K = confusion_KK.diagonal(), confusion_KK.sum(1)
        self._right, self._images = int(right_K.sum()), int(images_K.sum())
        seen_K = images_K > 0
        return {
            "top1": (right_K.sum() / images_K.sum()).item(),
            "top5": self._top5.compute().item(),
            "loss": self._loss.compute().item(),
            "class_top1": (right_K[seen_K] / images_K[seen_K]).mean().item(),
            "calibration_error": self._reliability.error(self._reliability_B3),
        }

    def details(self) -> dict[str, Any]:
        """`classes`: images and top-1 of each class; `confusion`: rows are true, columns guessed;
        `reliability`: mean confidence, top-1 and images of each bin of confidence that has any;
        `top1_interval`: where top-1 lies with 95 %, by the number of images alone (Wilson's score).

        Guesses beyond the labels, which surplus outputs can make, are in no column.
        """
        assert self._confusion_KK is not None, "compute comes first"
        assert self._reliability_B3 is not None
        count = len(self._labels)
        images_K = self._confusion_KK.sum(1).long().tolist()
        confusion_KK = self._confusion_KK[:count, :count].long().tolist()
        return {
            "classes": {
                label: {
                    "images": images_K[index],
                    "top1": confusion_KK[index][index] / images_K[index]
                    if images_K[index]
                    else None,
                }
                for index, label in enumerate(self._labels)
            },
            "confusion": confusion_KK,
            "top1_interval": list(interval(self._right, self._images)),
            "reliability": [
                {"confidence": confidence / images, "top1": right / images, "images": int(images)}
                for confidence, right, images in self._reliability_B3.tolist()
                if images
            ],
        }
