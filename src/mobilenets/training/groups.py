"""Figures of each group of images beside those of all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mobilenets.data.groups import Groups
from mobilenets.data.loaders import Batch, Loader
from mobilenets.training.task import Metrics, Task


class GroupMetrics:
    """Metrics of each group, fed with the batches of one loader."""

    def __init__(self, task: Task, loader: Loader, groups: Groups) -> None:
        self._task, self._loader, self._groups = task, loader, groups
        self._metrics: dict[str, Metrics] = {}
        self._counts: dict[str, int] = {}
        self.unknown = 0

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch, each image in its group."""
        assert batch.rows_N is not None
        places: dict[str, list[int]] = {}
        for place, row in enumerate(batch.rows_N.tolist()):
            group = self._groups.of(self._loader.name(row))
            if group is None:
                self.unknown += 1
            else:
                places.setdefault(group, []).append(place)
        for group, found in places.items():
            metrics = self._metrics.setdefault(group, self._task.metrics())
            self._counts[group] = self._counts.get(group, 0) + len(found)
            places_M = torch.tensor(found)
            metrics.update(outputs[places_M.to(outputs.device)], batch.take(places_M))

    def compute(self) -> dict[str, dict[str, Any]]:
        """The figures, `images` and `details` of each group, or its `problem` where it has none."""
        found: dict[str, dict[str, Any]] = {}
        for group, metrics in sorted(self._metrics.items()):
            try:
                figures: dict[str, Any] = dict(metrics.compute())
                figures["details"] = metrics.details()
            except ValueError as error:
                figures = {"problem": str(error)}
            found[group] = {**figures, "images": self._counts[group]}
        return found
