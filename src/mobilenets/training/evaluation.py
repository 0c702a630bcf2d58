"""Exact evaluation: every image once, whatever the batch size and the number of processes."""

from __future__ import annotations

import torch
from torch import nn

from mobilenets.data.loaders import Loader
from mobilenets.data.progress import progress
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
    metrics = task.metrics()
    images = gather(metrics, model, loader, device, what, processes=processes, mirror=mirror)
    return {**metrics.compute(), "images": images}


def gather(
    metrics: Metrics,
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    what: str,
    *,
    processes: Processes = ALONE,
    mirror: bool = False,
) -> int:
    """Run a model over a loader into metrics, and give the number of images."""
    model.eval()
    images = 0
    with torch.inference_mode(), progress(what, loader.images) as advance:
        for batch in loader.batches(shard=processes.shard):
            if len(batch):
                batch = batch.to(device)
                outputs = model(batch.images_NCHW)
                if mirror:
                    outputs = (outputs + model(batch.images_NCHW.flip(-1))) / 2
                metrics.update(outputs, batch)
            images += len(batch)
            advance(batch.whole)
    return round(processes.total({"images": float(images)}, device)["images"])
