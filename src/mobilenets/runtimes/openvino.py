"""OpenVINO."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenets.runtimes.quiet import in_short


def import_openvino() -> Any:
    """The package, without its telemetry.

    OpenVINO and NNCF report to their maker through the package `openvino_telemetry` where they can
    import it, and ask nobody; here they can't.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


class OpenVinoModel:
    """An `.xml` with its `.bin` beside it, loaded on the CPU in the precision that it is written in.

    Args:
        path: the `.xml`.
        threads: how many cores one call may use; 0 leaves it to OpenVINO.

    Raises:
        ValueError: the file is no such model, or takes something else than one image batch.
    """

    name = "OpenVINO"

    def __init__(self, path: Path, threads: int = 0) -> None:
        openvino = import_openvino()
        # On processors that have it, it would take bfloat16 by itself.
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            self._compiled = openvino.Core().compile_model(path, "CPU", options)
        except RuntimeError as error:
            raise ValueError(
                f"{path}: not a model that OpenVINO reads ({in_short(error)})"
            ) from None
        inputs = self._compiled.inputs
        shape = inputs[0].partial_shape if len(inputs) == 1 else []
        if len(shape) != 4 or any(side.is_dynamic for side in list(shape)[1:]):
            raise ValueError(f"{path}: it takes something else than a batch of images of one size")
        channels, height, width = (side.get_length() for side in list(shape)[1:])
        self._path = path
        self.input_shape: tuple[int, int, int] = (channels, height, width)

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch, such as logits (N, K).

        Raises:
            ValueError: the file does not take such a batch.
        """
        try:
            outputs: NDArray[np.float32] = self._compiled(inputs_NCHW)[0]
        except RuntimeError as error:
            raise ValueError(
                f"{self._path}: it does not take a batch of {len(inputs_NCHW)} ({in_short(error)})"
            ) from None
        return outputs
