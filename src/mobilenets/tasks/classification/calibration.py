"""Whether a classifier is as sure as it is right.

Shapes: N images, K classes, B bins.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15


class CalibrationError(Metric):
    """Expected calibration error over bins of confidence (Guo et al. 2017, arXiv 1706.04599).

    Mean distance between confidence and accuracy, weighted by the images in a bin: 0 when 80 % of
    the images with confidence 0.8 are right. torchmetrics' own keeps the confidence of every image
    until the end; this one keeps sums by bin.

    >>> metric = CalibrationError()
    >>> metric.update(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))
    >>> round(metric.compute().item(), 4)
    0.3
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("confidence_B", "right_B", "images_B"):
            self.add_state(name, torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores_NK: Tensor, targets_N: Tensor) -> None:
        """Count probabilities."""
        confidence_N, guesses_N = scores_NK.double().max(1)
        bins_N = (confidence_N * BINS).long().clamp(0, BINS - 1)
        right_N = (guesses_N == targets_N).double()
        for name, values_N in (
            ("confidence_B", confidence_N),
            ("right_B", right_N),
            ("images_B", torch.ones_like(right_N)),
        ):
            cast(Tensor, getattr(self, name)).index_add_(0, bins_N, values_N)

    def compute(self) -> Tensor:
        """The error, from 0 to 1."""
        confidence_B, right_B = cast(Tensor, self.confidence_B), cast(Tensor, self.right_B)
        images_B = cast(Tensor, self.images_B)
        return (confidence_B - right_B).abs().sum() / images_B.sum().clamp(min=1)
