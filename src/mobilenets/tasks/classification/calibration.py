"""Whether a classifier is as sure as it is right.

Shapes: N images, K classes, B bins.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15


class Reliability(Metric):
    """Confidence and accuracy over bins of confidence (Guo et al. 2017, arXiv 1706.04599).

    `compute` gives (B, 3): in each bin the sum of confidences, the right guesses and the images.
    torchmetrics' own calibration error keeps the confidence of every image until the end; this one
    keeps sums.

    >>> metric = Reliability()
    >>> metric.update(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))
    >>> round(metric.error(metric.compute()), 4)
    0.3
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums_B3", torch.zeros(BINS, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores_NK: Tensor, targets_N: Tensor) -> None:
        """Count probabilities."""
        confidence_N, guesses_N = scores_NK.double().max(1)
        bins_N = (confidence_N * BINS).long().clamp(0, BINS - 1)
        right_N = (guesses_N == targets_N).double()
        values_N3 = torch.stack([confidence_N, right_N, torch.ones_like(right_N)], 1)
        cast(Tensor, self.sums_B3).index_add_(0, bins_N, values_N3)

    def compute(self) -> Tensor:
        """The sums."""
        return cast(Tensor, self.sums_B3)

    @staticmethod
    def error(sums_B3: Tensor) -> float:
        """Expected calibration error: the mean distance between confidence and accuracy, 0 to 1.

        It is weighted by the images in a bin: 0 when 80 % of the images with confidence 0.8 are right.
        """
        confidence_B, right_B, images_B = sums_B3.unbind(1)
        return float((confidence_B - right_B).abs().sum() / images_B.sum().clamp(min=1))
