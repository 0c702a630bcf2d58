"""TensorFlow Lite's files, with labels and normalisation in their metadata."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilenets.deploy import litert_boxes
from mobilenets.deploy.exportable import LEVELS, Exportable, places_of, tail_of
from mobilenets.runtimes.quiet import quiet

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ACTIVATIONS = ("LEAKY_RELU", "RELU", "RELU6")
LABELS = "labels.txt"
_METADATA, _METADATA_IDENTIFIER, _MODEL_IDENTIFIER = "TFLITE_METADATA", b"M001", b"TFL3"
# The first version of the metadata's parsers that knows all that is used here.
_PARSER = "1.0.0"


def write(model: Exportable, path: Path) -> None:
    """Write a `.tflite` that takes one image at a time, channels last, as phones do."""
    with quiet("litert_torch", "torch", "jax"):
        import litert_torch

        whole = litert_boxes.Parts(model.network) if model.selection else model.network
        network = litert_torch.to_channel_last_io(whole, args=[0]).eval()
        example_NHWC = model.example().permute(0, 2, 3, 1).contiguous()
        litert_torch.convert(network, (example_NHWC,)).export(str(path))
        if model.int8 is not None:
            _quantise(model, path)
        path.write_bytes(_described(model, path.read_bytes()))


def _quantise(model: Exportable, path: Path) -> None:
    """Replace a float file by its int8 form."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    int8 = model.int8
    assert int8 is not None
    interpreter = Interpreter(model_path=str(path))
    ((signature, ends),) = interpreter.get_signature_list().items()
    recipe = RecipeManager()
    recipe.add_static_config(
        ".*",
        TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
        weight_granularity=(
            QuantGranularity.CHANNELWISE if int8.per_channel else QuantGranularity.TENSORWISE
        ),
    )
    # Floats at both ends: who prepares images for the float file prepares them for this one.
    floats = [(".*", TFLOperationName.INPUT), (".*", TFLOperationName.OUTPUT)]
    floats += [
        # The quantiser looks for these in what operators put out, a semicolon behind each.
        (f"^{re.escape(name)};", TFLOperationName.ALL_SUPPORTED)
        for name in _floats(interpreter, model)
    ]
    for name, operation in floats:
        recipe.add_quantization_config(name, operation, algorithm_key="no_quantize")
    images = [
        {ends["inputs"][0]: image_NCHW.permute(0, 2, 3, 1).contiguous().numpy()}
        for image_NCHW in torch.split(int8.images_NCHW, 1)
    ]
    # By itself it takes a moving average of each image's range, and cuts off what a few images need.
    ranges = Calibrator(str(path), qsv_update_func=min_max_update)
    ranges.calibrate({signature: images}, recipe)
    quantizer = Quantizer(str(path), recipe.get_quantization_recipe())
    whole = path.with_name("quantised.tflite")
    quantizer.quantize(ranges.get_model_qsvs()).export_model(whole)
    whole.replace(path)


def _floats(interpreter: Any, model: Exportable) -> list[str]:
    """What the outputs of layers that stay in float are called."""
    interpreter.allocate_tensors()
    names = {tensor["index"]: tensor["name"] for tensor in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()
    weighted = [operator for operator in operators if operator["op_name"] in _WEIGHTED]
    assert model.int8 is not None
    weights = [interpreter.get_tensor(operator["inputs"][1]) for operator in weighted]
    kept = {
        operator["outputs"][0]
        for operator, place in zip(weighted, places_of(model.network, weights), strict=True)
        if place in model.int8.keep
    }
    # With the activation that follows each, which would round what it gives.
    kept |= {
        operator["outputs"][0]
        for operator in operators
        if operator["op_name"] in _ACTIVATIONS and operator["inputs"][0] in kept
    }
    if model.form != "network":
        tail = tail_of(
            [
                (
                    str(operator["outputs"][0]),
                    [*map(str, operator["inputs"])],
                    operator["op_name"] in _WEIGHTED,
                )
                for operator in operators
            ]
        )
        kept |= {int(tensor) for tensor in tail}
    return [names[tensor] for tensor in sorted(kept)]


def _described(model: Exportable, file: bytes) -> bytes:
    """The file with metadata, where MediaPipe and Android Studio look for labels and normalisation.

    The description is one of the model's own buffers; the labels are a zip archive behind it.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as tflite

    builder = flatbuffers.Builder(0)
    builder.Finish(_metadata(model).Pack(builder), _METADATA_IDENTIFIER)
    content = tflite.ModelT.InitFromPackedBuf(file, 0)
    for buffer in content.buffers:
        # Large ones may lie behind the model, by their place in the file, which is about to change.
        if buffer.offset > 1:
            buffer.data = np.frombuffer(file, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    if model.selection is not None:
        litert_boxes.append_selection(content, model.network, model.selection)
    buffer = tflite.BufferT()
    buffer.data = np.frombuffer(builder.Output(), np.uint8)
    content.buffers.append(buffer)
    entry = tflite.MetadataT()
    entry.name, entry.buffer = _METADATA, len(content.buffers) - 1
    content.metadata = [*(content.metadata or []), entry]
    builder = flatbuffers.Builder(len(file))
    builder.Finish(content.Pack(builder), _MODEL_IDENTIFIER)
    described = io.BytesIO(bytes(builder.Output()))
    if model.labels:
        with zipfile.ZipFile(described, "a") as archive:
            archive.writestr(LABELS, "".join(f"{label}\n" for label in model.labels))
    return described.getvalue()


def _metadata(model: Exportable) -> Any:
    """How pictures become the input, and what the outputs' values are called."""
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema

    picture = schema.TensorMetadataT()
    picture.name, picture.description = "image", "The image to look at."
    picture.content = schema.ContentT()
    picture.content.contentPropertiesType = schema.ContentProperties.ImageProperties
    picture.content.contentProperties = schema.ImagePropertiesT()
    colours = {"L": schema.ColorSpaceType.GRAYSCALE, "RGB": schema.ColorSpaceType.RGB}
    picture.content.contentProperties.colorSpace = colours.get(
        model.preprocessing.channels, schema.ColorSpaceType.UNKNOWN
    )
    step = schema.ProcessUnitT()
    step.optionsType = schema.ProcessUnitOptions.NormalizationOptions
    step.options = schema.NormalizationOptionsT()
    step.options.mean = [LEVELS * mean for mean in model.preprocessing.mean]
    step.options.std = [LEVELS * std for std in model.preprocessing.std]
    picture.processUnits = [step]

    graph = schema.SubGraphMetadataT()
    graph.inputTensorMetadata = [picture]
    if model.selection is None:
        graph.outputTensorMetadata = [_scores(model)]
    else:
        graph.outputTensorMetadata, graph.outputTensorGroups = litert_boxes.metadata(LABELS)
    whole = schema.ModelMetadataT()
    whole.name = "MobileNet"
    whole.description = "Classifies images." if model.form == "network" else "Finds things."
    whole.subgraphMetadata = [graph]
    whole.minParserVersion = _PARSER
    return whole


def _scores(model: Exportable) -> Any:
    """What the output's values are called."""
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema

    scores = schema.TensorMetadataT()
    scores.name, scores.description = "score", "One value a class, before softmax."
    if model.form != "network":
        scores.name, scores.description = "boxes", "Boxes, each with a score of each class."
    scores.content = schema.ContentT()
    scores.content.contentPropertiesType = schema.ContentProperties.FeatureProperties
    scores.content.contentProperties = schema.FeaturePropertiesT()
    if model.labels and model.form == "network":
        labels = schema.AssociatedFileT()
        labels.name, labels.description = LABELS, "The classes, one a line."
        labels.type = schema.AssociatedFileType.TENSOR_AXIS_LABELS
        scores.associatedFiles = [labels]
    return scores
