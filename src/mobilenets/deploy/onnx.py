"""ONNX files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobilenets.deploy.exportable import Exportable, Int8
from mobilenets.runtimes.quiet import quiet

INPUT, OUTPUT = "images", "logits"
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def write(model: Exportable, path: Path) -> None:
    """Write a `.onnx` that takes any number of images, in float or in int8 with QDQ nodes."""
    if model.int8 is None:
        _write_float(model, path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as aside:
        whole = Path(aside) / "float.onnx"
        _write_float(model, whole)
        _quantise(whole, path, model.int8)


def _write_float(model: Exportable, path: Path) -> None:
    with quiet("torch.onnx", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            model.program(any_batch=True),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Each node carries the exporter's stack trace: 100 kB, and paths of this machine.
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(str(path))


def _quantise(whole: Path, path: Path, int8: Int8) -> None:
    import onnx

    with quiet():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = whole.with_name("prepared.onnx")
        # It logs to the root logger that it would rather have a prepared model, which it has.
        logging.disable(logging.CRITICAL)
        try:
            quant_pre_process(whole, prepared, skip_symbolic_shape=True)
            nodes = onnx.load(prepared).graph.node
            weighted = [node.name for node in nodes if node.op_type in _WEIGHTED]
            quantize_static(
                prepared,
                path,
                _images(int8),
                quant_format=QuantFormat.QDQ,
                per_channel=int8.per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[weighted[number] for number in sorted(int8.keep)],
            )
        finally:
            logging.disable(logging.NOTSET)


def _images(int8: Int8) -> Any:
    """Calibration images as ONNX Runtime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[torch.Tensor] = iter(torch.split(int8.images_NCHW, 1))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT: image.numpy()}

    return Reader()
