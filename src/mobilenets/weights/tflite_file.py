"""TensorFlow Lite files: float, or integers that are turned back into floats; batch norm is folded in.

The file is read as the data structure that it is; no TensorFlow is involved. Operators are taken in their order. A classifier
is a chain: convolutions, one pooling, a linear layer. A detector is a chain of convolutions with two heads at some of
them, joined, and TensorFlow's detection post-process, whose settings are read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobilenets.architecture.body import Padding
from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.architecture.spec import Activation
from mobilenets.weights.imported import INSTALL, TRACELESS, Convolution, ForeignWeights
from mobilenets.weights.imported_detector import ForeignDetector

_IDENTIFIER = b"TFL3"
# Behind the classifier, or where a quantised file begins and ends, these change no weights.
_PASSED_OVER = ("RESHAPE", "SQUEEZE", "SOFTMAX", "QUANTIZE", "DEQUANTIZE")
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# What joins a detector's heads.
_JOINS = ("RESHAPE", "CONCATENATION", "LOGISTIC", "QUANTIZE", "DEQUANTIZE")
_POSTPROCESS = "TFLite_Detection_PostProcess"
_POOLS = ("AVERAGE_POOL_2D", "MEAN")
_UINT8, _INT8 = 3, 9
_TYPES = {0: np.float32, 1: np.float16, 2: np.int32, _UINT8: np.uint8, _INT8: np.int8}


@dataclass
class _Chain:
    """What has been read so far, over all files of a model."""

    convolutions: list[Convolution] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)
    activations: set[Activation] = field(default_factory=set)
    paddings: set[Padding] = field(default_factory=set)
    classifier: tuple[torch.Tensor, torch.Tensor] | None = None
    pooled: bool = False
    input: Any = None


def read_tflite(paths: Sequence[Path]) -> ForeignWeights:
    """Read a classifier from a `.tflite` file, or from several that hold it in turn, body first.

    Raises:
        ValueError: the file is truncated or of another kind, or holds an operator that is not one of
            MobileNet V1's; the file and the operator are named.
        ImportError: the package that knows the format is missing.
    """
    chain = _Chain()
    for path in paths:
        with _opened(path) as file:
            file.read_into(chain)
    return _weights(chain, " + ".join(map(str, paths)))


def _weights(chain: _Chain, origin: str) -> ForeignWeights:
    if not chain.convolutions or chain.input is None:
        raise ValueError(f"{origin}: it has no convolutions: is the file with the body missing?")
    if len(chain.activations) != 1:
        kinds = ", ".join(sorted(chain.activations))
        raise ValueError(f"{origin}: its layers have different activations ({kinds})")
    (height, width, channels), mean, std = chain.input
    return ForeignWeights(
        origin=origin,
        convolutions=chain.convolutions,
        classifier=chain.classifier,
        activation=chain.activations.pop(),
        padding=_padding(chain.paddings, origin),
        batch_norm_epsilon=1e-3,
        resolution=(height, width),
        total_stride=math.prod(chain.strides),
        strides=chain.strides,
        # Folded, batch norm has no epsilon left that would matter.
        sure=frozenset(TRACELESS),
        preprocessing=Preprocessing(
            height,
            width,
            channels=channel_order(channels),
            mean=(mean,) * channels,
            std=(std,) * channels,
        ),
    )


def is_detector(path: Path) -> bool:
    """Whether a `.tflite` file ends in TensorFlow's detection post-process.

    Raises:
        ValueError: the file is truncated or of another kind.
        ImportError: the package that knows the format is missing.
    """
    with _opened(path) as file:
        return _POSTPROCESS in file.kinds


def read_tflite_detector(path: Path, labels: Sequence[str] = ()) -> ForeignDetector:
    """Read SSD300 with TensorFlow's detection post-process from a `.tflite` file.

    Args:
        labels: class names, in place of the file's own, without the background's.

    Raises:
        ValueError: the file is truncated or holds another detector; the file and what is wrong are named.
        ImportError: the package that knows the format is missing.
    """
    with _opened(path) as file:
        found = file.read_detector()
    return replace(found, labels=["background", *labels]) if labels else found


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    try:
        import tflite
    except ImportError:
        raise ImportError(f"reading .tflite files needs the package tflite: {INSTALL}") from None
    content = path.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ValueError(f"{path}: not a TensorFlow Lite file")
    try:
        yield _File(path, tflite.Model.GetRootAsModel(content, 0), tflite)
    except ValueError:
        raise
    # A truncated buffer fails wherever the reader happens to be.
    except Exception as error:
        raise ValueError(f"{path}: not a whole TensorFlow Lite file ({error})") from None


def _padding(found: set[Padding], origin: str) -> Padding:
    # Stride 1 pads alike in all: SAME says nothing against an explicit padding elsewhere.
    explicit = found - {"tensorflow"}
    if len(explicit) > 1:
        raise ValueError(f"{origin}: its layers pad in different ways")
    return explicit.pop() if explicit else "tensorflow"


class _File:
    def __init__(self, path: Path, model: Any, tflite: Any) -> None:
        self._path, self._model, self._tflite = path, model, tflite
        if model.SubgraphsLength() != 1:
            raise ValueError(
                f"{path}: it has {model.SubgraphsLength()} graphs, and one is expected"
            )
        self._graph = model.Subgraphs(0)
        # Of constants that the file turns into floats itself, as its form of 16-bit floats does.
        self._behind: dict[int, int] = {}

    def read_into(self, chain: _Chain) -> None:
        graph = self._graph
        last = int(graph.Inputs(0))
        if chain.input is None:
            chain.input = self._input(last)
            if chain.input[0][:2] == (1, 1):
                raise ValueError(
                    f"{self._path}: it begins with features, not with an image: name the file with "
                    "the body before it"
                )
        before: tuple[int, ...] | None = None
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            kind = self._kind(operator)
            inputs = operator.InputsAsNumpy()
            if kind == "DEQUANTIZE" and self._is_constant(int(inputs[0])):
                self._behind[int(operator.Outputs(0))] = int(inputs[0])
                continue
            if inputs[0] != last:
                raise ValueError(
                    f"{self._path}: operator {index} ({kind}) branches off, as a detector's do; "
                    "a classifier is a chain"
                )
            last = int(operator.Outputs(0))
            if kind == "PAD":
                before = tuple(self._values(int(inputs[1])).flatten().tolist())
                continue
            if kind in _CONVOLUTIONS:
                self._add(chain, kind, operator, before)
                before = None
            elif kind in _POOLS:
                chain.pooled = True
            elif kind not in _PASSED_OVER:
                raise ValueError(
                    f"{self._path}: operator {index} is {kind}, which MobileNet V1 does not have"
                )

    @property
    def kinds(self) -> set[str]:
        """What kinds of operators there are."""
        graph = self._graph
        return {self._kind(graph.Operators(i)) for i in range(graph.OperatorsLength())}

    def read_detector(self) -> ForeignDetector:
        graph = self._graph
        operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
        joined = {int(o.Inputs(0)) for o in operators if self._kind(o) == "RESHAPE"}
        chain = _Chain(input=self._input(int(graph.Inputs(0))))
        heads: list[tuple[Convolution, int]] = []
        settings: Mapping[str, Any] = {}
        anchors: NDArray[Any] | None = None
        # Which convolution of the chain puts out which tensor.
        made: dict[int, int] = {}
        for index, operator in enumerate(operators):
            kind = self._kind(operator)
            if kind in _CONVOLUTIONS and int(operator.Outputs(0)) in joined:
                heads.append((self._convolution(kind, operator), made[int(operator.Inputs(0))]))
            elif kind in _CONVOLUTIONS:
                made[int(operator.Outputs(0))] = len(chain.convolutions)
                self._add(chain, kind, operator, None)
            elif kind == _POSTPROCESS:
                from flatbuffers import flexbuffers

                settings = flexbuffers.Loads(bytes(operator.CustomOptionsAsNumpy()))
                anchors = self._values(int(operator.Inputs(2)))
            elif kind not in _JOINS:
                raise ValueError(
                    f"{self._path}: operator {index} is {kind}, which SSD on MobileNet V1 does not have"
                )
        assert anchors is not None
        return ForeignDetector(
            weights=_weights(chain, str(self._path)),
            heads=heads,
            anchors=torch.from_numpy(anchors.copy()),
            settings=settings,
            labels=_attached_labels(self._path),
        )

    def _add(self, chain: _Chain, kind: str, operator: Any, before: tuple[int, ...] | None) -> None:
        convolution = self._convolution(kind, operator)
        name, weight, bias = convolution.name, convolution.weight, convolution.bias
        assert bias is not None
        if chain.pooled:
            if chain.classifier is not None:
                raise ValueError(f"{self._path}: {name} is a second classifier")
            chain.classifier = weight.flatten(1), bias
            return
        options, activation = self._options(kind, operator)
        if options is None:
            raise ValueError(f"{self._path}: {name} is a linear layer before the pooling")
        stride = int(options.StrideH())
        if options.DilationHFactor() != 1 or options.StrideW() != stride:
            raise ValueError(
                f"{self._path}: {name} is dilated, or has two strides, as no layer of MobileNet V1"
            )
        chain.convolutions.append(convolution)
        chain.strides.append(stride)
        chain.activations.add(activation)
        if stride == 2:
            chain.paddings.add(self._padding_of(options, before, name))

    def _convolution(self, kind: str, operator: Any) -> Convolution:
        """Weights as PyTorch orders them, and a bias; of a linear layer (out, in)."""
        inputs = operator.InputsAsNumpy()
        values = self._values(int(inputs[1]))
        order = {4: (3, 0, 1, 2) if kind == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2), 2: (0, 1)}
        weight = torch.from_numpy(values.transpose(order[values.ndim]).copy())
        bias = torch.zeros(len(weight))
        if len(inputs) > 2 and inputs[2] >= 0:
            bias = torch.from_numpy(self._values(int(inputs[2])).copy())
        name = self._graph.Tensors(int(inputs[1])).Name().decode()
        return Convolution(name=name, weight=weight, bias=bias)

    def _padding_of(self, options: Any, before: tuple[int, ...] | None, name: str) -> Padding:
        if options.Padding() == self._tflite.Padding.SAME:
            return "tensorflow"
        if before == (0, 0, 0, 1, 0, 1, 0, 0):
            return "keras"
        if before == (0, 0, 1, 1, 1, 1, 0, 0):
            return "torch"
        raise ValueError(f"{self._path}: {name} pads in a way that is not supported ({before})")

    def _options(self, kind: str, operator: Any) -> tuple[Any, Activation]:
        tflite = self._tflite
        if kind == "FULLY_CONNECTED":
            return None, "relu"
        options = tflite.Conv2DOptions() if kind == "CONV_2D" else tflite.DepthwiseConv2DOptions()
        table = operator.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        fused = options.FusedActivationFunction()
        kinds: dict[int, Activation] = {
            tflite.ActivationFunctionType.RELU: "relu",
            tflite.ActivationFunctionType.RELU6: "relu6",
        }
        if fused == tflite.ActivationFunctionType.NONE and self._ends_at_six(
            int(operator.Outputs(0))
        ):
            return options, "relu6"
        if fused not in kinds:
            raise ValueError(
                f"{self._path}: a layer has activation {fused}, neither ReLU nor ReLU6"
            )
        return options, kinds[fused]

    def _ends_at_six(self, index: int) -> bool:
        """Whether a tensor's integers stand for 0 to 6 alone, which makes the activation needless."""
        tensor = self._graph.Tensors(index)
        quantization = tensor.Quantization()
        if tensor.Type() not in (_UINT8, _INT8) or quantization.ScaleIsNone():
            return False
        least = -128 if tensor.Type() == _INT8 else 0
        ends = 255 * float(quantization.Scale(0))
        return int(quantization.ZeroPoint(0)) == least and abs(ends - 6) < 0.01

    def _kind(self, operator: Any) -> str:
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if number == self._tflite.BuiltinOperator.CUSTOM:
            return str(code.CustomCode().decode())
        return str(self._tflite.opcode2name(number))

    def _input(self, index: int) -> tuple[tuple[int, ...], float, float]:
        """Height, width and channels; mean and deviation of what the file takes, in the unit of pixel / 255."""
        tensor = self._graph.Tensors(index)
        shape = tuple(int(side) for side in tensor.ShapeAsNumpy())
        if len(shape) != 4:
            raise ValueError(
                f"{self._path}: its input has shape {shape}, and an image has four sides"
            )
        quantization = tensor.Quantization()
        in_bytes = tensor.Type() in (_UINT8, _INT8)
        if quantization is None or quantization.ScaleIsNone() or not in_bytes:
            return shape[1:], 0.5, 0.5
        # Of signed integers, pixel 0 is -128.
        least = -128 if tensor.Type() == _INT8 else 0
        zero = int(quantization.ZeroPoint(0)) - least
        return shape[1:], zero / 255, 1 / (255 * float(quantization.Scale(0)))

    def _is_constant(self, index: int) -> bool:
        return bool(self._model.Buffers(self._graph.Tensors(index).Buffer()).DataLength())

    def _values(self, index: int) -> NDArray[Any]:
        """A constant tensor as floats, or as integers where it is not quantised."""
        index = self._behind.get(index, index)
        tensor = self._graph.Tensors(index)
        name, kind = tensor.Name().decode(), tensor.Type()
        if kind not in _TYPES:
            raise ValueError(
                f"{self._path}: {name} has a number type that is not supported ({kind})"
            )
        buffer = self._model.Buffers(tensor.Buffer())
        if buffer.DataIsNone():
            raise ValueError(f"{self._path}: {name} holds no numbers")
        values = np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype=_TYPES[kind])
        values = values.reshape(tensor.ShapeAsNumpy())
        quantization = tensor.Quantization()
        if quantization is None or quantization.ScaleIsNone():
            return values.astype(np.float32) if values.dtype == np.float16 else values
        scales = quantization.ScaleAsNumpy().astype(np.float64)
        zeros = quantization.ZeroPointAsNumpy().astype(np.float64)
        if len(scales) > 1:
            # One scale a channel, along the dimension that the file names.
            shape = [1] * values.ndim
            shape[quantization.QuantizedDimension()] = len(scales)
            scales, zeros = scales.reshape(shape), zeros.reshape(shape)
        floats: NDArray[np.float32] = ((values.astype(np.float64) - zeros) * scales).astype(
            np.float32
        )
        return floats


def _attached_labels(path: Path) -> list[str]:
    """Lines of the text file that TensorFlow's metadata attach behind a model as a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".txt"))
            return archive.read(name).decode("utf-8").splitlines()
    except (zipfile.BadZipFile, StopIteration, UnicodeDecodeError):
        return []
