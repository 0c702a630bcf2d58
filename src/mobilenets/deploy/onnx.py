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

from mobilenets.architecture.detector import Selection
from mobilenets.deploy.exportable import Exportable, Int8, places_of, tail_of
from mobilenets.runtimes.quiet import quiet

INPUT, BOXES = "images", "boxes"
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ACTIVATIONS = ("Clip", "LeakyRelu", "Relu")


def write(model: Exportable, path: Path) -> None:
    """Write a `.onnx` that takes any number of images, in float or in int8 with QDQ nodes."""
    if model.int8 is None:
        _write_float(model, path)
    else:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as aside:
            whole = Path(aside) / "float.onnx"
            _write_float(model, whole)
            _quantise(whole, path, model)
    if model.selection is not None:
        _append_selection(path, model.selection)


def _write_float(model: Exportable, path: Path) -> None:
    with quiet("torch.onnx", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            model.program(any_batch=True),
            input_names=[INPUT],
            output_names=[BOXES if model.selection else model.output],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Each node carries the exporter's stack trace: 100 kB, and paths of this machine.
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(str(path))


def _append_selection(path: Path, selection: Selection) -> None:
    """Let a file that gives every box with its scores (N, A, 4 + K) give the best alone (N, F, 6)."""
    import onnx

    model = onnx.load(path)
    (end,) = model.graph.output
    _, boxes, values = (side.dim_value for side in end.type.tensor_type.shape.dim)
    most = min(selection.most, boxes * (values - 4))
    opset = next(used.version for used in model.opset_import if not used.domain)
    best = onnx.parser.parse_model(
        f"""<ir_version: {model.ir_version}, opset_import: ["" : {opset}]>
        selection (float[N, {boxes}, {values}] placed) => (float[N, {most}, 6] found)
        <int64[1] zero = {{0}}, int64[1] four = {{4}}, int64[1] end = {{{values}}}, int64[1] last = {{2}},
         int64[1] most = {{{most}}}, float[1] overlap = {{{selection.overlap}}}, float[1] least = {{{selection.score}}},
         int64[2] flat = {{0, -1}}, int64[1] boxes = {{{boxes}}},
         float none = {{0.0}}, float whole = {{1.0}}>
        {{
            corners = Slice (placed, zero, four, last)
            by_box = Slice (placed, four, end, last)
            scores = Transpose <perm = [0, 2, 1]> (by_box)
            picked = NonMaxSuppression (corners, scores, most, overlap, least)
            picked_scores = GatherND (scores, picked)
            shape = Shape (scores)
            nothing = ConstantOfShape (shape)
            kept = ScatterND (nothing, picked, picked_scores)
            in_a_row = Reshape (kept, flat)
            best, places = TopK <axis = 1> (in_a_row, most)
            classes = Div (places, boxes)
            box_places = Mod (places, boxes)
            in_image = Unsqueeze (box_places, last)
            best_corners = GatherND <batch_dims = 1> (corners, in_image)
            within = Clip (best_corners, none, whole)
            best_of = Unsqueeze (best, last)
            class_numbers = Cast <to = 1> (classes)
            classes_of = Unsqueeze (class_numbers, last)
            rows = Concat <axis = 2> (within, best_of, classes_of)
            are = Greater (best_of, none)
            there = Cast <to = 1> (are)
            found = Mul (rows, there)
        }}"""
    )
    whole = onnx.compose.merge_models(
        model, best, io_map=[(end.name, "placed")], prefix2="selection_"
    )
    whole.graph.node[-1].output[0] = whole.graph.output[0].name = "found"
    onnx.checker.check_model(whole)
    onnx.save(whole, path)


def _quantise(whole: Path, path: Path, model: Exportable) -> None:
    import onnx

    int8 = model.int8
    assert int8 is not None

    with quiet():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = whole.with_name("prepared.onnx")
        # It logs to the root logger that it would rather have a prepared model, which it has.
        logging.disable(logging.CRITICAL)
        try:
            quant_pre_process(whole, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            nodes, stored = graph.node, {tensor.name: tensor for tensor in graph.initializer}
            weighted = [node for node in nodes if node.op_type in _WEIGHTED]
            weights = [onnx.numpy_helper.to_array(stored[node.input[1]]) for node in weighted]
            places = places_of(model.network, weights)
            floats = {
                node.output[0]
                for node, place in zip(weighted, places, strict=True)
                if place in int8.keep
            }
            # With the activation that follows each, which would round what it gives.
            kept = {
                node.name
                for node in nodes
                if node.output[0] in floats
                or (node.op_type in _ACTIVATIONS and node.input[0] in floats)
            }
            if model.form != "network":
                kept |= _tail(nodes)
            quantize_static(
                prepared,
                path,
                _images(int8),
                quant_format=QuantFormat.QDQ,
                per_channel=int8.per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(kept),
            )
        finally:
            logging.disable(logging.NOTSET)


def _tail(nodes: Any) -> set[str]:
    """The nodes that place boxes."""
    tail = tail_of([(node.output[0], node.input, node.op_type in _WEIGHTED) for node in nodes])
    return {node.name for node in nodes if node.output[0] in tail}


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
