"""How far predicted places are from true ones, over an evaluation.

Shapes: N photos.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.data.loaders import Batch
from mobilenets.tasks.geolocation.earth import SCALES_KM, distance_km

WITHIN = tuple(f"within_{scale}km" for scale in SCALES_KM)
FIGURES = ("mean_within", *WITHIN, "median_km", "loss")


class PlaceMetrics:
    """Shares of photos within 1, 25, 200, 750 and 2,500 km, their mean, `median_km` and `loss`.

    Args:
        locate: gives latitudes and longitudes (N, 2) for outputs.
        loss: of outputs and targets.
    """

    def __init__(
        self,
        locate: Callable[[NDArray[np.float32]], NDArray[np.float64]],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        # torchmetrics takes seconds to import, and prediction does not need it.
        from torchmetrics import CatMetric, MeanMetric

        self._locate, self._loss_of = locate, loss
        self._distances, self._loss = CatMetric(), MeanMetric()
        self._details: dict[str, Any] = {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch."""
        outputs = outputs.float()
        places_N2 = self._locate(outputs.cpu().numpy())
        true_N2 = batch.targets_N[:, :2].double().cpu().numpy()
        distances_N = distance_km(true_N2[:, 0], true_N2[:, 1], places_N2[:, 0], places_N2[:, 1])
        self._distances.update(torch.from_numpy(distances_N))
        self._loss.update(self._loss_of(outputs, batch.targets_N).cpu(), weight=len(batch))

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        from scipy.stats import binomtest

        distances_N = self._distances.compute().double().view(-1).numpy()
        count = len(distances_N)
        intervals = {}
        shares = {}
        for name, scale in zip(WITHIN, SCALES_KM, strict=True):
            near = int((distances_N <= scale).sum())
            interval = binomtest(near, count).proportion_ci(0.95, method="wilson")
            shares[name] = near / count
            intervals[name] = [float(interval.low), float(interval.high)]
        median = float(np.median(distances_N))
        intervals["median_km"] = _median_interval(distances_N)
        self._details = {"intervals": intervals}
        mean = sum(shares.values()) / len(shares)
        return {
            "mean_within": mean,
            **shares,
            "median_km": median,
            "loss": self._loss.compute().item(),
        }

    def details(self) -> dict[str, Any]:
        """`intervals`: of each figure in which 95 % of such samples would have it: Wilson's of shares, by ranks of the median."""
        assert self._details, "compute comes first"
        return self._details


def _median_interval(values_N: NDArray[np.float64]) -> list[float]:
    """By the ranks that a fair coin stays between in 95 % of as many throws."""
    from scipy.stats import binom

    low, high = binom.interval(0.95, len(values_N), 0.5)
    ordered_N = np.sort(values_N)
    return [
        float(ordered_N[max(0, int(low) - 1)]),
        float(ordered_N[min(len(values_N) - 1, int(high))]),
    ]
