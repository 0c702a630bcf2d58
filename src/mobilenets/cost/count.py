"""Exact cost from layer rows: mult-adds, FLOPs, parameters, bytes and activation peak.

Mult-adds count the products of convolutions and linear layers; biases, batch norm, activations
and pooling are left out, as in the paper. One mult-add is two FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mobilenets.architecture.detector import Spec, model_layers
from mobilenets.architecture.layer_rows import Layer, LayerType

CONVENTION = (
    "mult-adds: products of convolutions and linear layers (no bias, batch norm, activation or "
    "pooling); FLOPs: two per mult-add; parameters: trainable, batch norm included"
)


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """The cost of one layer; numbers are values, not bytes."""

    layer: Layer
    mult_adds: int
    weights: int
    biases: int
    batch_norm_channels: int
    activations: int

    @property
    def parameters(self) -> int:
        """Trainable values: weights, biases, batch norm's scale and shift."""
        return self.weights + self.biases + 2 * self.batch_norm_channels

    @property
    def flops(self) -> int:
        """Two per mult-add."""
        return 2 * self.mult_adds

    def to_dict(self) -> dict[str, Any]:
        """One row of `cost --json`'s `layers`."""
        layer = self.layer
        return {
            "name": layer.name,
            "type": layer.type,
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "in_size": list(layer.in_size),
            "out_size": list(layer.out_size),
            "stride": layer.stride,
            "mult_adds": self.mult_adds,
            "flops": self.flops,
            "parameters": self.parameters,
            "activations": self.activations,
        }


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a network: exact whole numbers, in total, per layer and per layer type."""

    layers: tuple[LayerCost, ...]

    @property
    def mult_adds(self) -> int:
        """Products of one forward pass over one image."""
        return sum(row.mult_adds for row in self.layers)

    @property
    def flops(self) -> int:
        """Two per mult-add."""
        return 2 * self.mult_adds

    @property
    def parameters(self) -> int:
        """Trainable values, which is what PyTorch counts."""
        return sum(row.parameters for row in self.layers)

    @property
    def weights(self) -> int:
        """Convolution and linear weights alone: no bias, no batch norm."""
        return sum(row.weights for row in self.layers)

    @property
    def parameters_without_batch_norm(self) -> int:
        """Weights and biases, which is what the paper's tables mostly count."""
        return self.weights + sum(row.biases for row in self.layers)

    @property
    def parameters_keras(self) -> int:
        """Keras' "total params": batch norm's running mean and variance are counted too."""
        return self.parameters + 2 * sum(row.batch_norm_channels for row in self.layers)

    @property
    def parameters_folded(self) -> int:
        """What is left to ship once batch norm is folded: weights and one bias a channel."""
        return self.parameters_without_batch_norm + sum(r.batch_norm_channels for r in self.layers)

    @property
    def activation_peak(self) -> int:
        """Most values alive at once: the largest input plus output of one layer."""
        return max(row.activations for row in self.layers)

    @property
    def bytes_fp32(self) -> int:
        """Bytes of the folded parameters, four each; a file adds a few kB of graph."""
        return 4 * self.parameters_folded

    @property
    def bytes_int8(self) -> int:
        """Bytes of the folded parameters in int8: weights one each, and for every output channel
        an int32 bias and a float32 scale.
        """
        channels = self.parameters_folded - self.weights
        return self.weights + 8 * channels

    def by_type(self) -> dict[LayerType, Cost]:
        """The same counts for each layer type that occurs.

        >>> from mobilenets.architecture.spec import MobileNetSpec
        >>> cost(MobileNetSpec()).by_type()["pointwise"].mult_adds
        539492352
        """
        types = dict.fromkeys(row.layer.type for row in self.layers)
        return {
            kind: Cost(layers=tuple(row for row in self.layers if row.layer.type == kind))
            for kind in types
        }

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON writes them."""
        return {
            "mult_adds": self.mult_adds,
            "flops": self.flops,
            "parameters": self.parameters,
            "parameters_without_batch_norm": self.parameters_without_batch_norm,
            "parameters_keras": self.parameters_keras,
            "activation_peak": self.activation_peak,
            "activation_peak_bytes_fp32": 4 * self.activation_peak,
            "activation_peak_bytes_int8": self.activation_peak,
            "bytes_fp32": self.bytes_fp32,
            "bytes_int8": self.bytes_int8,
            "by_type": {
                kind: {
                    "mult_adds": part.mult_adds,
                    "flops": part.flops,
                    "parameters": part.parameters,
                }
                for kind, part in self.by_type().items()
            },
            "layers": [row.to_dict() for row in self.layers],
        }


def count(rows: Iterable[Layer]) -> Cost:
    """Count any layer rows; grouped convolutions are counted as grouped.

    >>> full = Layer(name="conv", type="conv", in_channels=512, out_channels=512, kernel=3,
    ...              in_size=(14, 14), out_size=(14, 14))
    >>> count([full]).mult_adds
    462422016
    """
    counted = tuple(_count(row) for row in rows)
    if not counted:
        raise ValueError("no layers to count")
    return Cost(layers=counted)


def cost(spec: Spec, num_classes: int | None = 1000) -> Cost:
    """The cost of a classifier or a detector.

    Args:
        num_classes: None leaves a classifier's last layer out; of a detector without the background, which is counted
            besides.

    >>> from mobilenets.architecture.detector import parse_spec
    >>> cost(parse_spec("1.0-224")).mult_adds, cost(parse_spec("1.0-224")).parameters
    (568740352, 4231976)
    >>> cost(parse_spec("ssd300/1.0"), 90).mult_adds
    1237129408
    """
    return count(model_layers(spec, num_classes))


def _count(layer: Layer) -> LayerCost:
    kernel = layer.kernel if isinstance(layer.kernel, tuple) else (layer.kernel, layer.kernel)
    weights = math.prod(kernel) * layer.in_channels // layer.groups * layer.out_channels
    owned = 0 if layer.shared else 1
    values = layer.in_channels * math.prod(layer.in_size) + layer.out_channels * math.prod(
        layer.out_size
    )
    return LayerCost(
        layer=layer,
        mult_adds=weights * math.prod(layer.out_size) * layer.repeats,
        weights=weights * owned,
        biases=layer.out_channels * owned if layer.bias else 0,
        batch_norm_channels=layer.out_channels if layer.batch_norm else 0,
        activations=values * layer.repeats,
    )
