"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class OnnxModel:
    """An ONNX file, loaded on the CPU.

    Args:
        path: the file.
        threads: how many cores one call may use; 0 leaves it to ONNX Runtime.
    """

    name = "ONNX Runtime"

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin between calls starve whatever else shares the cores, PyTorch above all.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Fatal messages alone: ours are the sentences that a user sees.
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch, such as logits (N, K)."""
        outputs: NDArray[np.float32] = self._session.run(None, {self._input: inputs_NCHW})[0]
        return outputs
