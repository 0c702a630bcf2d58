"""Average precision and balanced accuracy of attributes over an evaluation.

Shapes: N images, L attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mobilenets.data.loaders import Batch
from mobilenets.tasks.attributes.loss import attribute_loss

FIGURES = ("map", "balanced_accuracy", "loss")
HALF = 0.5


class AttributeMetrics:
    """`map`, the mean of the attributes' average precisions; `balanced_accuracy`, the mean of those of yes and of no; `loss`.

    Args:
        labels: the attributes.
        thresholds: from which score on the answer is yes; None fits them to what is evaluated.
    """

    def __init__(self, labels: Sequence[str], thresholds: Sequence[float] | None) -> None:
        # torchmetrics takes seconds to import, and prediction does not need it.
        from torchmetrics import CatMetric, MeanMetric

        self._labels, self._given = tuple(labels), thresholds
        # It warns of NaN, which stands for what is not told.
        self._scores, self._targets = (CatMetric(nan_strategy="disable") for _ in range(2))
        self._loss = MeanMetric(nan_strategy="disable")
        self._details: dict[str, Any] = {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch of logits (N, L)."""
        logits_NL, targets_NL = outputs.float().cpu(), batch.targets_N.cpu()
        self._scores.update(logits_NL.sigmoid())
        self._targets.update(targets_NL)
        self._loss.update(attribute_loss(logits_NL, targets_NL), weight=len(batch))

    def compute(self) -> dict[str, float]:
        """The three figures, over all processes; an attribute without a yes or without a no counts in none."""
        from torchmetrics.functional.classification import binary_average_precision

        count = len(self._labels)
        scores_NL = self._scores.compute().view(-1, count)
        targets_NL = self._targets.compute().view(-1, count)
        rows = {}
        thresholds = []
        for place, label in enumerate(self._labels):
            told_N = ~targets_NL[:, place].isnan()
            scores_M = scores_NL[told_N, place]
            yes_M = targets_NL[told_N, place] >= HALF
            defined = bool(yes_M.any()) and not bool(yes_M.all())
            threshold = HALF if not defined else fit_threshold(scores_M, yes_M)
            thresholds.append(threshold)
            if self._given is not None:
                threshold = self._given[place]
            rows[label] = {
                "images": int(told_N.sum()),
                "yes": int(yes_M.sum()),
                "ap": binary_average_precision(scores_M, yes_M.long()).item() if defined else None,
                "balanced_accuracy": balanced_accuracy(scores_M, yes_M, threshold)
                if defined
                else None,
                "false_yes": _share(scores_M[~yes_M] >= threshold),
                "false_no": _share(scores_M[yes_M] < threshold),
                "threshold": threshold,
            }
        self._details = {"attributes": rows, "thresholds": thresholds}
        figures = {
            "map": [row["ap"] for row in rows.values() if row["ap"] is not None],
            "balanced_accuracy": [
                row["balanced_accuracy"]
                for row in rows.values()
                if row["balanced_accuracy"] is not None
            ],
        }
        means = {name: sum(values) / max(1, len(values)) for name, values in figures.items()}
        return {**means, "loss": self._loss.compute().item()}

    def details(self) -> dict[str, Any]:
        """`attributes`: of each, how many images tell it, how many of them yes, its average precision and balanced accuracy (None,
        undefined, without a yes or without a no), the shares of no that are told yes and of yes that are told no, and its threshold;
        `thresholds`: those that fit these images.
        """
        assert self._details, "compute comes first"
        return self._details


def _share(wrong_M: Tensor) -> float | None:
    return wrong_M.float().mean().item() if len(wrong_M) else None


def balanced_accuracy(scores_M: Tensor, yes_M: Tensor, threshold: float) -> float:
    """The mean of the shares of yes and of no that are told right.

    >>> balanced_accuracy(torch.tensor([0.9, 0.4, 0.1]), torch.tensor([True, True, False]), 0.5)
    0.75
    """
    said_M = scores_M >= threshold
    return float((said_M[yes_M].float().mean() + (~said_M[~yes_M]).float().mean()) / 2)


def fit_threshold(scores_M: Tensor, yes_M: Tensor) -> float:
    """The score from which on yes is said, half way between two images, where balanced accuracy is greatest.

    >>> round(fit_threshold(torch.tensor([0.9, 0.4, 0.1]), torch.tensor([True, True, False])), 2)
    0.25
    """
    order_M = scores_M.argsort()
    sorted_M, yes_M = scores_M[order_M].double(), yes_M[order_M]
    # So many of the lowest are told no.
    right_no = torch.cat([torch.zeros(1), (~yes_M).cumsum(0)]) / (~yes_M).sum()
    right_yes = 1 - torch.cat([torch.zeros(1), yes_M.cumsum(0)]) / yes_M.sum()
    # Equal scores can't be told apart.
    apart = torch.cat([torch.tensor([True]), sorted_M[1:] > sorted_M[:-1], torch.tensor([True])])
    best = int(torch.where(apart, right_no + right_yes, -1.0).argmax())
    if best == 0:
        return 0.0
    if best == len(sorted_M):
        return 1.0
    return float((sorted_M[best - 1] + sorted_M[best]) / 2)
