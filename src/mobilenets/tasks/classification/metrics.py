"""Top-1, top-5 and cross-entropy over an evaluation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mobilenets.data.loaders import Batch


class ClassificationMetrics:
    """`top1` and `top5` as shares, `loss` as mean cross-entropy in nats.

    With fewer than five classes, top-5 counts as many as there are.
    """

    def __init__(self, classes: int) -> None:
        # torchmetrics takes seconds to import, and prediction does not need it.
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy

        self._top1 = MulticlassAccuracy(classes, average="micro")
        self._top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes))
        self._loss = MeanMetric()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch of logits (N, K)."""
        logits_NK, targets_N = outputs.float().cpu(), batch.targets_N.cpu()
        self._top1.update(logits_NK, targets_N)
        self._top5.update(logits_NK, targets_N)
        self._loss.update(F.cross_entropy(logits_NK, targets_N, reduction="none"))

    def compute(self) -> dict[str, float]:
        """The three figures."""
        return {
            "top1": self._top1.compute().item(),
            "top5": self._top5.compute().item(),
            "loss": self._loss.compute().item(),
        }
