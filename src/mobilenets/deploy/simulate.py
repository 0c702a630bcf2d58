"""What int8 does to a network, layer by layer, computed in floats that hold integers' values.

Weights have one scale for each output channel and are symmetric, activations one scale and a zero point, as in
every runtime that is exported to. An activation function that runtimes don't merge into the convolution before it (leaky
ReLU) has its input rounded too.

N images, C channels, K outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilenets.architecture.layers import ConvUnit
from mobilenets.architecture.steps import Step, layer_of
from mobilenets.deploy.exportable import steps_of

LEVELS, LARGEST = 255, 127


@dataclass(frozen=True)
class Range:
    """What values a tensor took."""

    lower: float
    upper: float

    @classmethod
    def of(cls, values: Tensor) -> Range:
        """Zero is always in it, as padding needs."""
        return cls(min(0.0, float(values.min())), max(0.0, float(values.max())))

    @property
    def scale(self) -> float:
        """From one of 256 values to the next; 0 where all are zero."""
        return (self.upper - self.lower) / LEVELS

    def round(self, values: Tensor) -> Tensor:
        """The nearest of 256 values."""
        scale = max(self.scale, 1e-12 / LEVELS)
        zero = round(-self.lower / scale)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, LEVELS)


def round_weights(weights: Tensor, *, per_channel: bool = True) -> Tensor:
    """The nearest of 255 values, with a scale for each output channel, or one for all.

    >>> round_weights(torch.tensor([[1.0, 0.5001], [100.0, 0.5]]))
    tensor([[  1.0000,   0.5039],
            [100.0000,   0.7874]])
    """
    others = tuple(range(1 if per_channel else 0, weights.dim()))
    scale = weights.abs().amax(others, keepdim=True).clamp(min=1e-12) / LARGEST
    return (weights / scale).round().clamp(-LARGEST, LARGEST) * scale


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far int8 takes one layer's output from float's, as signal over noise in decibels.

    Args:
        alone: at the network's outputs, when this layer only is quantised.
        together: at this layer, when all are.
    """

    layer: str
    alone: float
    together: float


class Simulation:
    """A folded network with any of its layers in int8.

    Args:
        images_NCHW: real images, preprocessed, from which the ranges are taken.
    """

    @torch.no_grad()
    def __init__(
        self, network: nn.Module, images_NCHW: Tensor, *, per_channel: bool = True
    ) -> None:
        self._steps = steps_of(copy.deepcopy(network))
        self._whole = {
            name: layer.weight.detach().clone()
            for name, step in self._steps.modules.items()
            if (layer := layer_of(step)) is not None
        }
        self._rounded = {
            name: round_weights(weights, per_channel=per_channel)
            for name, weights in self._whole.items()
        }
        self._input = Range.of(images_NCHW)
        self._ranges: dict[str, tuple[Range, Range]] = {}

        def compute(name: str, step: Step, x: Tensor) -> Tensor:
            before = _before(step, x)
            x = _after(step, before)
            self._ranges[name] = Range.of(before), Range.of(x)
            return x

        self._steps.walk(images_NCHW, compute)

    @property
    def layers(self) -> list[str]:
        """Those with weights, in the order in which they compute."""
        return list(self._whole)

    @torch.no_grad()
    def layer_outputs(self, images_NCHW: Tensor, quantised: Set[str]) -> dict[str, Tensor]:
        """Every layer's output, with the named layers in int8."""
        found: dict[str, Tensor] = {}

        def compute(name: str, step: Step, x: Tensor) -> Tensor:
            found[name] = self._compute(name, step, x, quantised)
            return found[name]

        self._steps.walk(self._images(images_NCHW, quantised), compute)
        return found

    @torch.no_grad()
    def outputs(self, images_NCHW: Tensor, quantised: Set[str]) -> Tensor:
        """The network's outputs, with the named layers in int8."""
        return self._steps.outputs(
            self._images(images_NCHW, quantised),
            lambda name, step, x: self._compute(name, step, x, quantised),
        )

    @torch.no_grad()
    def bias_corrections(self, images_NCHW: Tensor, quantised: Set[str]) -> dict[str, Tensor]:
        """What to add to each layer's bias so that its mean is what it is in float.

        Layer by layer, each seeing what the corrected ones before it give (Nagel et al. 2019, arXiv
        1906.04721, section 4.2, with images in place of batch norm's statistics).
        """
        found: dict[str, Tensor] = {}

        def compute(name: str, step: Step, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            whole, x = both
            self._take(name, step, rounded=False)
            wanted = _before(step, whole)
            self._take(name, step, rounded=name in quantised)
            before = _before(step, x)
            if name in self._whole:
                axes = [axis for axis in range(before.dim()) if axis != 1]
                found[name] = (wanted - before).mean(axes)
                before = before + found[name].view(1, -1, *[1] * (before.dim() - 2))
            x = self._finish(name, step, before, rounded=name in quantised)
            return _after(step, wanted), x

        self._steps.walk((images_NCHW, self._images(images_NCHW, quantised)), compute)
        return found

    def errors(self, images_NCHW: Tensor) -> list[LayerError]:
        """How much each layer suffers, in the order in which they compute."""
        outputs = self.outputs(images_NCHW, frozenset())
        whole = self.layer_outputs(images_NCHW, frozenset())
        together = self.layer_outputs(images_NCHW, frozenset(self.layers))
        return [
            LayerError(
                layer=name,
                alone=decibels(_weighed(outputs), _weighed(self.outputs(images_NCHW, {name}))),
                together=decibels(whole[name], together[name]),
            )
            for name in self.layers
        ]

    def _images(self, images_NCHW: Tensor, quantised: Set[str]) -> Tensor:
        return self._input.round(images_NCHW) if self.layers[0] in quantised else images_NCHW

    def _compute(self, name: str, step: Step, x: Tensor, quantised: Set[str]) -> Tensor:
        self._take(name, step, rounded=name in quantised)
        return self._finish(name, step, _before(step, x), rounded=name in quantised)

    def _take(self, name: str, step: Step, *, rounded: bool) -> None:
        layer = layer_of(step)
        if layer is not None:
            layer.weight.copy_((self._rounded if rounded else self._whole)[name])

    def _finish(self, name: str, step: Step, before: Tensor, *, rounded: bool) -> Tensor:
        if not rounded:
            return _after(step, before)
        ends = self._ranges[name]
        if isinstance(step, ConvUnit) and isinstance(step.activation, nn.LeakyReLU):
            before = ends[0].round(before)
        return ends[1].round(_after(step, before))


@torch.no_grad()
def shift_biases(network: nn.Module, by: Mapping[str, Tensor]) -> nn.Module:
    """A copy with something added to its layers' biases."""
    shifted = copy.deepcopy(network)
    for name, step in steps_of(shifted).modules.items():
        layer = layer_of(step)
        if layer is not None and layer.bias is not None and name in by:
            layer.bias.add_(by[name])
    return shifted


def _weighed(outputs: Tensor) -> Tensor:
    """Outputs as they matter: of boxes with scores (N, A, 4 + K), a box counts as much as something is in it."""
    if outputs.dim() < 3:
        return outputs
    boxes_NA4, scores_NAK = outputs[..., :4], outputs[..., 4:]
    return torch.cat([boxes_NA4 * scores_NAK.amax(-1, keepdim=True), scores_NAK], -1)


def decibels(signal: Tensor, with_noise: Tensor) -> float:
    """Ten times the logarithm of the signal's power over the noise's; endless where there is no noise.

    >>> decibels(torch.tensor([10.0]), torch.tensor([11.0]))
    20.0
    """
    noise = float((with_noise - signal).square().mean())
    power = float(signal.square().mean())
    return math.inf if noise == 0 else 10 * math.log10(max(power, 1e-30) / noise)


def _before(step: Step, x: Tensor) -> Tensor:
    """A step's output before its activation function."""
    outputs: Tensor = step.convolve(x) if isinstance(step, ConvUnit) else step(x)
    return outputs


def _after(step: Step, before: Tensor) -> Tensor:
    """A step's output from that."""
    # The activation may work in place.
    outputs: Tensor = step.activation(before.clone()) if isinstance(step, ConvUnit) else before
    return outputs
