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
from mobilenets.data.splits import UNKNOWN
from mobilenets.tasks.geolocation.cells import Cells
from mobilenets.tasks.geolocation.earth import SCALES_KM, distance_km

# Of these, the one that fits validation photos best makes probabilities as sure as they are right.
TEMPERATURES = tuple(np.geomspace(0.5, 32, 25).round(4).tolist())
WITHIN = tuple(f"within_{scale}km" for scale in SCALES_KM)
FIGURES = ("mean_within", *WITHIN, "median_km", "loss")


class PlaceMetrics:
    """Shares of photos within 1, 25, 200, 750 and 2,500 km, their mean, `median_km` and `loss`.

    Args:
        locate: gives latitudes and longitudes (N, 2) for outputs.
        loss: of outputs and targets, and how much it counts.
        cells: that the outputs are of, where they are of any, to fit a temperature.
    """

    def __init__(
        self,
        locate: Callable[[NDArray[np.float32]], NDArray[np.float64]],
        loss: Callable[[Tensor, Tensor], tuple[Tensor, int]],
        cells: Cells | None = None,
    ) -> None:
        # torchmetrics takes seconds to import, and prediction does not need it.
        from torchmetrics import CatMetric, MeanMetric

        self._locate, self._loss_of, self._cells = locate, loss, cells
        # What is no number is told, and stops training.
        self._distances = CatMetric(nan_strategy="disable")
        self._loss = MeanMetric(nan_strategy="disable")
        self._surprise = CatMetric(nan_strategy="disable")
        self._details: dict[str, Any] = {}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch."""
        outputs = outputs.float()
        places_N2 = self._locate(outputs.cpu().numpy())
        true_N2 = batch.targets_N[:, :2].cpu().double().numpy()
        distances_N = distance_km(true_N2[:, 0], true_N2[:, 1], places_N2[:, 0], places_N2[:, 1])
        self._distances.update(torch.from_numpy(distances_N))
        loss, count = self._loss_of(outputs, batch.targets_N)
        # Of photos in no cell alone it is nothing.
        self._loss.update(loss.cpu(), weight=max(count, 1e-9))
        if self._cells is not None:
            finest_N = batch.targets_N[:, -1].long().cpu().numpy()
            known_N = finest_N != UNKNOWN
            self._surprise.update(
                _surprise(self._cells, outputs.cpu().numpy()[known_N], finest_N[known_N])
            )

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
        if self._cells is not None:
            sums_T = self._surprise.compute().view(-1, len(TEMPERATURES)).sum(0)
            # Where no photo is in a cell nothing is known of it.
            if sums_T.any():
                self._details["temperature"] = TEMPERATURES[int(sums_T.argmin())]
        mean = sum(shares.values()) / len(shares)
        return {
            "mean_within": mean,
            **shares,
            "median_km": median,
            "loss": self._loss.compute().item(),
        }

    def details(self) -> dict[str, Any]:
        """`intervals`: of each figure in which 95 % of such samples would have it: Wilson's of shares, by ranks of the median;
        in training `temperature`, with which these photos' cells are the least surprising.
        """
        assert self._details, "compute comes first"
        return self._details


def _surprise(cells: Cells, logits_NJ: NDArray[np.float32], finest_N: NDArray[np.int64]) -> Tensor:
    """Of each temperature the cross-entropy of the finest cells, summed over the photos."""
    places = np.arange(len(finest_N)), finest_N
    sums = [-cells.log_probabilities(logits_NJ, one)[places].sum() for one in TEMPERATURES]
    return torch.tensor(sums)


def _median_interval(values_N: NDArray[np.float64]) -> list[float]:
    """By the ranks that a fair coin stays between in 95 % of as many throws."""
    from scipy.stats import binom

    low, high = binom.interval(0.95, len(values_N), 0.5)
    ordered_N = np.sort(values_N)
    return [
        float(ordered_N[max(0, int(low) - 1)]),
        float(ordered_N[min(len(values_N) - 1, int(high))]),
    ]
