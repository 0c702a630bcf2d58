"""ExecuTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mobilenets.runtimes.quiet import in_short, quiet


class ExecuTorchModel:
    """A `.pte`, loaded on the CPU; images of a batch go through it one after another.

    Args:
        path: the file.
        threads: ignored: ExecuTorch's Python runtime takes the machine's cores.

    Raises:
        ValueError: the file is no such model, or takes something else than one image.
    """

    name = "ExecuTorch"

    def __init__(self, path: Path, threads: int = 0) -> None:
        del threads
        with quiet():
            from executorch.runtime import Runtime

            try:
                # The program borrows from the file as long as it is used.
                self._program = Runtime.get().load_program(path)
                self._method = self._program.load_method("forward")
                assert self._method is not None
                described = self._method.metadata.input_tensor_meta(0).sizes()
            except (RuntimeError, IndexError) as error:
                raise ValueError(
                    f"{path}: not a model that ExecuTorch reads ({in_short(error)})"
                ) from None
        if len(described) != 4 or described[0] != 1:
            raise ValueError(f"{path}: it takes something else than one image at a time")
        _, channels, height, width = described
        self.input_shape: tuple[int, int, int] = (channels, height, width)

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for each image, such as logits (N, K)."""
        images_NCHW = torch.from_numpy(np.ascontiguousarray(inputs_NCHW))
        outputs = [
            self._method.execute([image])[0].numpy().copy() for image in torch.split(images_NCHW, 1)
        ]
        return np.concatenate(outputs)
