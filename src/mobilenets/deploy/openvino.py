"""OpenVINO's intermediate representation: `model.xml` and, beside it, `model.bin`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from mobilenets.deploy.exportable import Exportable
from mobilenets.runtimes.openvino import import_openvino
from mobilenets.runtimes.quiet import quiet

_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")


def write(model: Exportable, path: Path) -> None:
    """Write 32-bit floats, or int8 by NNCF; any number of images at a time."""
    openvino = import_openvino()
    with quiet("openvino", "nncf", "torch"):
        graph = openvino.convert_model(model.program(any_batch=True))
        graph.reshape([-1, *model.input_shape])
        graph.inputs[0].set_names({"images"})
        graph.outputs[0].set_names({"logits"})
        if model.int8 is not None:
            graph = _quantised(model, graph)
        openvino.save_model(graph, path, compress_to_fp16=False)


def _quantised(model: Exportable, graph: Any) -> Any:
    import nncf

    int8 = model.int8
    assert int8 is not None
    nncf.set_log_level(logging.ERROR)
    weighted = [node for node in graph.get_ordered_ops() if node.get_type_name() in _WEIGHTED]
    kept = [weighted[number].get_friendly_name() for number in sorted(int8.keep)]
    images = [image_NCHW.numpy() for image_NCHW in torch.split(int8.images_NCHW, 1)]
    parameters = None
    if not int8.per_channel:
        whole = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
        parameters = nncf.AdvancedQuantizationParameters(weights_quantization_params=whole)
    return nncf.quantize(
        graph,
        nncf.Dataset(images),
        subset_size=len(images),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
        advanced_parameters=parameters,
    )
