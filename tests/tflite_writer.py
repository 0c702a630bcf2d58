"""MobileNets as TensorFlow Lite files, in the forms that converters write."""

from __future__ import annotations

import flatbuffers
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema

from mobilenets.architecture.layer_rows import layers_of

NUMBERS = {"float32": (np.float32, 0), "float16": (np.float16, 1), "int8": (np.int8, 9)}
BEFORE = {"keras": [[0, 0], [0, 1], [0, 1], [0, 0]], "torch": [[0, 0], [1, 1], [1, 1], [0, 0]]}
ACTIVATIONS = {"relu": 1, "relu6": 3}


class Writer:
    """Tensors and operators of one graph, a chain.

    Args:
        weights: `float32`, `float16` (turned into floats by the file itself), or `int8` with a scale a channel.
    """

    def __init__(self, side, channels, weights="float32", given=None):
        self.weights = weights
        self.buffers = [schema.BufferT(data=[])]
        self.tensors, self.operators, self.codes = [], [], {}
        self.last = self.first = self.tensor("input", (1, side, side, channels), quantization=given)

    def tensor(self, name, shape, kind=0, values=None, quantization=None):
        buffer = 0
        if values is not None:
            buffer = len(self.buffers)
            self.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        if quantization is not None and values is None:
            kind = 9
        self.tensors.append(
            schema.TensorT(
                shape=list(shape), type=kind, buffer=buffer, name=name, quantization=quantization
            )
        )
        return len(self.tensors) - 1

    def constant(self, name, values, axis=None):
        """A constant as the file keeps it; `axis` is that of the channels of weights."""
        if axis is None or self.weights == "float32":
            kind = 2 if values.dtype == np.int32 else 0
            return self.tensor(name, values.shape, kind, values)
        dtype, kind = NUMBERS[self.weights]
        if self.weights == "float16":
            stored = self.tensor(name, values.shape, kind, values.astype(dtype))
            as_float = self.tensor(f"{name} as float", values.shape)
            self.operator(6, [stored], as_float)
            return as_float
        kept, scales = quantised(values, axis)
        quantization = schema.QuantizationParametersT(
            scale=scales.ravel().tolist(),
            zeroPoint=[0] * scales.size,
            quantizedDimension=axis,
        )
        return self.tensor(name, values.shape, kind, kept, quantization)

    def operator(self, code, inputs, output, options_type=0, options=None):
        index = self.codes.setdefault(code, len(self.codes))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=index,
                inputs=inputs,
                outputs=[output],
                builtinOptionsType=options_type,
                builtinOptions=options,
            )
        )

    def then(self, code, others, shape, options_type=0, options=None):
        """The next operator of the chain."""
        output = self.tensor(f"after {len(self.operators)}", shape)
        self.operator(code, [self.last, *others], output, options_type, options)
        self.last = output

    def write(self, path):
        graph = schema.SubGraphT(
            tensors=self.tensors,
            inputs=[self.first],
            outputs=[self.last],
            operators=self.operators,
            name="main",
        )
        codes = [
            schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=3)
            for code in self.codes
        ]
        model = schema.ModelT(
            version=3, operatorCodes=codes, subgraphs=[graph], buffers=self.buffers
        )
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())


def quantised(values, axis):
    """int8 values and the scales of the channels along an axis."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scales = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
    return np.round(values / scales).astype(np.int8), scales


def folded(conv, norm):
    """Weight and bias with the batch norm behind them folded in."""
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def write_tflite(network, path, weights="float32", given=None):
    """A network of ours, batch norm folded, pooled by MEAN, its classifier fully connected; no softmax."""
    spec = network.spec
    writer = Writer(spec.height, spec.input_channels, weights, given)
    modules = dict(network.named_modules())
    for layer in layers_of(spec, None):
        unit = modules[f"body.{layer.name}"]
        weight, bias = (part.detach().numpy() for part in folded(unit.conv, unit.norm))
        depthwise = layer.type == "depthwise"
        weight = np.ascontiguousarray(weight.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)))
        # Keras pads its first layer as TensorFlow does.
        same = spec.padding == "tensorflow" or (spec.padding == "keras" and layer.name == "conv0")
        explicit = layer.stride == 2 and not same
        if explicit:
            pads = np.array(BEFORE[spec.padding], dtype=np.int32)
            more = int(pads[1].sum())
            shape = (1, layer.in_size[0] + more, layer.in_size[1] + more, layer.in_channels)
            writer.then(34, [writer.constant("pads", pads)], shape, 22, schema.PadOptionsT())
        common = {
            "padding": 1 if explicit else 0,
            "strideW": layer.stride,
            "strideH": layer.stride,
            "fusedActivationFunction": ACTIVATIONS[spec.activation],
            "dilationWFactor": 1,
            "dilationHFactor": 1,
        }
        options = (
            schema.DepthwiseConv2DOptionsT(depthMultiplier=1, **common)
            if depthwise
            else schema.Conv2DOptionsT(**common)
        )
        others = [
            writer.constant(layer.name, weight, axis=3 if depthwise else 0),
            writer.constant(f"{layer.name} bias", bias),
        ]
        shape = (1, *layer.out_size, layer.out_channels)
        writer.then(4 if depthwise else 3, others, shape, 2 if depthwise else 1, options)
    features = layer.out_channels
    axes = writer.constant("axes", np.array([1, 2], dtype=np.int32))
    writer.then(40, [axes], (1, features), 27, schema.ReducerOptionsT(keepDims=False))
    weight = network.classifier.weight.detach().numpy()
    others = [
        writer.constant("classifier", weight, axis=0),
        writer.constant("classifier bias", network.classifier.bias.detach().numpy()),
    ]
    writer.then(9, others, (1, len(weight)), 8, schema.FullyConnectedOptionsT())
    writer.write(path)
