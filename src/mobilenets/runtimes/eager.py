"""PyTorch itself, without a compiler."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class EagerModel:
    """A module in evaluation mode, channels last.

    Args:
        module: takes images (N, C, H, W).
        input_shape: an image's (C, H, W).
        threads: how many cores one call may use; 0 leaves it to PyTorch.
    """

    name = "PyTorch"

    def __init__(
        self, module: nn.Module, input_shape: tuple[int, int, int], threads: int = 0
    ) -> None:
        self._module = module.eval().to(memory_format=torch.channels_last)
        self.input_shape = input_shape
        self._threads = threads

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output for a batch, such as logits (N, K)."""
        images_NCHW = torch.from_numpy(inputs_NCHW).contiguous(memory_format=torch.channels_last)
        return run_module(self._module, images_NCHW, self._threads)


def use_threads(threads: int) -> None:
    """Let PyTorch's calls from here on use so many cores; 0 leaves it as it is."""
    if threads and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def run_module(module: nn.Module, images_NCHW: Tensor, threads: int = 0) -> NDArray[np.float32]:
    """A module's output for a batch, by calls that may use so many cores."""
    use_threads(threads)
    with torch.inference_mode():
        outputs: NDArray[np.float32] = module(images_NCHW).numpy()
    return outputs
