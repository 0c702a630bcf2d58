"""OpenVINO's intermediate representation: `model.xml` and, beside it, `model.bin`."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobilenets.deploy import onnx
from mobilenets.deploy.exportable import Exportable, places_of, tail_of
from mobilenets.runtimes.openvino import import_openvino
from mobilenets.runtimes.quiet import quiet

_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")


def write(model: Exportable, path: Path) -> None:
    """Write 32-bit floats, or int8 by NNCF; any number of images at a time."""
    openvino = import_openvino()
    with quiet("openvino", "nncf", "torch"):
        graph = _converted(model)
        graph.reshape([-1, *model.input_shape])
        graph.inputs[0].set_names({"images"})
        graph.outputs[0].set_names({model.output})
        if model.int8 is not None:
            graph = _quantised(model, graph)
        openvino.save_model(graph, path, compress_to_fp16=False)


def _converted(model: Exportable) -> Any:
    openvino = import_openvino()
    if model.selection is None:
        return openvino.convert_model(model.program(any_batch=True))
    # torch.export knows no selection of boxes; ONNX does.
    with tempfile.TemporaryDirectory() as aside:
        path = Path(aside) / "model.onnx"
        onnx.write(replace(model, int8=None), path)
        return openvino.convert_model(path)


def _quantised(model: Exportable, graph: Any) -> Any:
    import nncf

    int8 = model.int8
    assert int8 is not None
    nncf.set_log_level(logging.ERROR)
    nodes = graph.get_ordered_ops()
    weighted = [node for node in nodes if node.get_type_name() in _WEIGHTED]
    places = places_of(model.network, [_weights(node) for node in weighted])
    kept = {
        node.get_friendly_name()
        for node, place in zip(weighted, places, strict=True)
        if place in int8.keep
    }
    if model.form != "network":
        kept |= _tail(nodes)
    images = [image_NCHW.numpy() for image_NCHW in torch.split(int8.images_NCHW, 1)]
    # By itself it takes the mean of the images' extremes and cuts off what goes beyond, and corrects biases a second time.
    exact = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    parameters = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=exact, disable_bias_correction=True
    )
    if not int8.per_channel:
        whole = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
        parameters.weights_quantization_params = whole
    return nncf.quantize(
        graph,
        nncf.Dataset(images),
        subset_size=len(images),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=sorted(kept)) if kept else None,
        advanced_parameters=parameters,
    )


def _weights(node: Any) -> NDArray[np.float32]:
    """What a convolution multiplies with, behind whatever changes its shape."""
    source = node.input_value(1).get_node()
    while source.get_type_name() != "Constant":
        source = source.input_value(0).get_node()
    weights: NDArray[np.float32] = source.get_data()
    return weights


def _tail(nodes: list[Any]) -> set[str]:
    """The operations that place boxes and select from them."""
    tail = tail_of(
        [
            (
                node.get_friendly_name(),
                [end.get_source_output().get_node().get_friendly_name() for end in node.inputs()],
                node.get_type_name() in _WEIGHTED,
            )
            for node in nodes
        ]
    )
    return {
        node.get_friendly_name()
        for node in nodes
        if node.get_friendly_name() in tail
        and node.get_type_name() not in ("Constant", "Parameter", "Result")
        # A bias belongs to its convolution.
        and not any(
            end.get_source_output().get_node().get_type_name() in _WEIGHTED for end in node.inputs()
        )
    }
