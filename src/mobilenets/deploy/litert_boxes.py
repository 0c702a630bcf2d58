"""A detector's end in TensorFlow Lite: the operator that selects the best boxes, as Android's task library expects it.

N images, A boxes, K classes, F boxes told.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets.architecture.detector import BOX_SCALES, Selection
from mobilenets.deploy.exportable import Placing

_OPERATOR = b"TFLite_Detection_PostProcess"
_OUTPUTS = ("location", "category", "score", "number of detections")


class Parts(nn.Module):
    """What that operator takes: moves (N, A, 4) in the order y, x, height, width, and scores (N, A, 1 + K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        moves_NA4, scores_NAK = cast(Placing, self.network).parts(images_NCHW)
        x, y, width, height = torch.split(moves_NA4, 1, -1)
        return torch.cat([y, x, height, width], -1), scores_NAK


def append_selection(content: Any, network: nn.Module, selection: Selection) -> None:
    """Let a file of `Parts` end in boxes (1, F, 4: top, left, bottom, right), classes (1, F), scores (1, F) and their number (1)."""
    from ai_edge_litert import schema_py_generated as tflite

    (graph,) = content.subgraphs
    moves, scores = graph.outputs
    classes = int(graph.tensors[scores].shape[-1]) - 1
    left, top, right, bottom = torch.split(cast(Placing, network).boxes_A4, 1, -1)
    grid_A4 = torch.cat(
        [(top + bottom) / 2, (left + right) / 2, bottom - top, right - left], -1
    ).numpy()

    def tensor(name: str, shape: tuple[int, ...], values: bytes = b"") -> int:
        buffer = tflite.BufferT()
        if values:
            buffer.data = np.frombuffer(values, np.uint8)
        content.buffers.append(buffer)
        made = tflite.TensorT()
        made.name, made.shape, made.type = name, list(shape), tflite.TensorType.FLOAT32
        made.buffer = len(content.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    code = tflite.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tflite.BuiltinOperator.CUSTOM
    code.customCode, code.version = _OPERATOR, 1
    content.operatorCodes.append(code)
    operator = tflite.OperatorT()
    operator.opcodeIndex = len(content.operatorCodes) - 1
    operator.inputs = [moves, scores, tensor("boxes", grid_A4.shape, grid_A4.tobytes())]
    shapes = [(1, selection.most, 4), (1, selection.most), (1, selection.most), (1,)]
    ends = [tensor(name, shape) for name, shape in zip(_OUTPUTS, shapes, strict=True)]
    operator.outputs = ends
    operator.customOptions = list(_options(classes, selection))
    graph.operators.append(operator)
    graph.outputs = ends
    for signature in content.signatureDefs or []:
        signature.outputs = []
        for name, end in zip(_OUTPUTS, ends, strict=True):
            named = tflite.TensorMapT()
            named.name, named.tensorIndex = name, end
            signature.outputs.append(named)


def _options(classes: int, selection: Selection) -> bytes:
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for name, number in (
            ("max_detections", selection.most),
            ("max_classes_per_detection", 1),
            ("detections_per_class", selection.most),
            ("num_classes", classes),
        ):
            builder.Key(name)
            builder.Int(number)
        builder.Key("use_regular_nms")
        builder.Bool(True)
        floats = {
            "nms_score_threshold": selection.score,
            "nms_iou_threshold": selection.overlap,
            **BOX_SCALES,
        }
        for name, value in floats.items():
            builder.Key(name)
            builder.Float(value, 4)
    return bytes(builder.Finish())


def metadata(labels: str) -> tuple[list[Any], list[Any]]:
    """What the four outputs are, and that they belong together.

    Args:
        labels: the name of the file of classes.
    """
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema

    tensors = []
    for name in _OUTPUTS:
        tensor = schema.TensorMetadataT()
        tensor.name = name
        tensor.content = schema.ContentT()
        kind = schema.ContentProperties
        tensor.content.contentPropertiesType = kind.FeatureProperties
        tensor.content.contentProperties = schema.FeaturePropertiesT()
        if name == "location":
            tensor.content.contentPropertiesType = kind.BoundingBoxProperties
            sides = schema.BoundingBoxPropertiesT()
            sides.index, sides.type = [1, 0, 3, 2], schema.BoundingBoxType.BOUNDARIES
            sides.coordinateType = schema.CoordinateType.RATIO
            tensor.content.contentProperties = sides
        if name != _OUTPUTS[-1]:
            # The second of its sides counts boxes.
            tensor.content.range = schema.ValueRangeT()
            tensor.content.range.min = tensor.content.range.max = 2
        if name == "category":
            file = schema.AssociatedFileT()
            file.name, file.description = labels, "The classes, one a line."
            file.type = schema.AssociatedFileType.TENSOR_VALUE_LABELS
            tensor.associatedFiles = [file]
        tensors.append(tensor)
    group = schema.TensorGroupT()
    group.name, group.tensorNames = "detection_result", list(_OUTPUTS[:-1])
    return tensors, [group]
