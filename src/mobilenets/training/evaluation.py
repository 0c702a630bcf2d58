"""Exact evaluation: every image once, whatever the batch size."""

from __future__ import annotations

import torch
from torch import nn

from mobilenets.data.loaders import Loader
from mobilenets.data.progress import progress
from mobilenets.training.task import Task


def evaluate(
    task: Task, model: nn.Module, loader: Loader, device: torch.device, what: str = "evaluating"
) -> dict[str, float]:
    """The task's metrics over a loader, and `images`, how many were counted.

    The model is left in evaluation mode.
    """
    model.eval()
    metrics = task.metrics()
    images = 0
    with torch.inference_mode(), progress(what, loader.images) as advance:
        for batch in loader.batches():
            batch = batch.to(device)
            metrics.update(model(batch.images_NCHW), batch)
            images += len(batch)
            advance(len(batch))
    return {**metrics.compute(), "images": images}
