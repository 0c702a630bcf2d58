"""Exact evaluation: every image once, whatever the batch size and the number of processes."""

from __future__ import annotations

import torch
from torch import nn

from mobilenets.data.loaders import Loader
from mobilenets.data.progress import progress
from mobilenets.training.groups import GroupMetrics
from mobilenets.training.processes import ALONE, Processes
from mobilenets.training.task import Metrics, Task


def evaluate(
    task: Task,
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    what: str = "evaluating",
    *,
    processes: Processes = ALONE,
    mirror: bool = False,
) -> dict[str, float]:
    """The task's metrics over a loader, and `images`, how many were counted.

    The model is left in evaluation mode.

    Args:
        mirror: average the outputs for each image and its mirror image.
    """
    figures, _ = measure(task, model, loader, device, what, processes=processes, mirror=mirror)
    return figures


def measure(
    task: Task,
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    what: str = "evaluating",
    *,
    processes: Processes = ALONE,
    mirror: bool = False,
    groups: GroupMetrics | None = None,
) -> tuple[dict[str, float], Metrics]:
    """As `evaluate`, and the metrics themselves, which have the details.

    Args:
        groups: are fed beside them.
    """
    model.eval()
    metrics = task.metrics()
    counted = 0
    with torch.inference_mode(), progress(what, loader.images) as advance:
        for batch in loader.batches(shard=processes.shard):
            if len(batch):
                batch = batch.to(device)
                outputs = model(batch.images_NCHW)
                if mirror:
                    outputs = (outputs + model(batch.images_NCHW.flip(-1))) / 2
                metrics.update(outputs, batch)
                if groups is not None:
                    groups.update(outputs, batch)
            counted += len(batch)
            advance(batch.whole)
    images = round(processes.total({"images": float(counted)}, device)["images"])
    return {**metrics.compute(), "images": images}, metrics
