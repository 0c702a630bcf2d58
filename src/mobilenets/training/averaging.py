"""The moving average of weights that is evaluated, and kept, in place of the last ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and running statistics.

    After n updates the decay is `min(decay, (1 + n) / (10 + n))`, as TensorFlow's
    `ExponentialMovingAverage` ramps it up, so that a short run is not an average with its start.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
        # The count that comes along is on the model's device, and a GPU would be waited for.
        n = int(average.n_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(values), weight)
        else:
            # Counters, such as batch norm's number of batches.
            for kept, value in zip(averages, values, strict=True):
                kept.copy_(value)

    average: AveragedModel = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average
