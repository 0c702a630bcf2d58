"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobilenets.runtimes.quiet import in_short

SPIN_US = "300"


class OnnxModel:
    """An ONNX file, loaded on the CPU.

    Args:
        path: the file.
        threads: how many cores one call may use; 0 leaves it to ONNX Runtime.

    Raises:
        ValueError: the file is no such model, or takes something else than one image batch.
    """

    name = "ONNX Runtime"

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin on after a call starve whatever else shares the cores, PyTorch above all, and those that sleep at
        # once are slow to wake.
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        # Fatal messages alone: ours are the sentences that a user sees.
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        # Its own exceptions have no common class.
        except Exception as error:
            raise ValueError(
                f"{path}: not a model that ONNX Runtime reads ({in_short(error)})"
            ) from None
        inputs = self._session.get_inputs()
        sides = inputs[0].shape[1:] if len(inputs) == 1 else []
        images = len(sides) == 3 and all(isinstance(side, int) for side in sides)
        if not images or inputs[0].type != "tensor(float)":
            raise ValueError(f"{path}: it takes something else than a batch of images of one size")
        self._path = path
        self._input = inputs[0].name
        self.input_shape: tuple[int, int, int] = (sides[0], sides[1], sides[2])

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch, such as logits (N, K).

        Raises:
            ValueError: the file does not take a batch of this size.
        """
        try:
            outputs: NDArray[np.float32] = self._session.run(None, {self._input: inputs_NCHW})[0]
        except Exception as error:
            raise ValueError(
                f"{self._path}: it does not take a batch of {len(inputs_NCHW)} ({in_short(error)})"
            ) from None
        return outputs
