"""A network made ready for int8: channels of like ranges, and room for biases.

One scale for a whole activation serves channels of like ranges best. A ReLU passes a factor through: what one layer's
channel is divided by, the next layer's weights can be multiplied by, and the network computes the same (Nagel et al. 2019, arXiv 1906.04721, section 4.1; the factors are those of
Xiao et al. 2022, arXiv 2211.10438, equation 4, as weights have a scale for each output channel already).

N images, C channels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mobilenets.architecture.layers import ConvUnit
from mobilenets.architecture.steps import Step, layer_of
from mobilenets.deploy.exportable import steps_of
from mobilenets.deploy.simulate import LARGEST, Range

SMALLEST = 1e-3
# A quarter of what 32 bits hold: other images may ask for a smaller scale.
MOST_STEPS = 2**29


@torch.no_grad()
def equalise(network: nn.Module, images_NCHW: Tensor, *, per_channel: bool = True) -> nn.Module:
    """A copy that computes the same to rounding, with like ranges.

    ReLU6 does not pass a factor through: layers that end in one are left as they are, and their ranges are alike. So are those
    that several others take the output of.

    Args:
        network: batch norm folded.
        images_NCHW: real images, preprocessed; their activations say what the ranges are.
        per_channel: weights will have one scale for each output channel, not one for all.
    """
    equal = copy.deepcopy(network)
    steps = steps_of(equal)

    def compute(name: str, step: Step, x_NCHW: Tensor) -> Tensor:
        x_NCHW = step(x_NCHW)
        followers = steps.followers(name)
        layer = layer_of(steps.modules[followers[0]]) if len(followers) == 1 else None
        if not isinstance(step, ConvUnit) or layer is None or isinstance(step.activation, nn.ReLU6):
            return x_NCHW
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        factors_C = _factors(
            x_NCHW.abs().amax((0, 2, 3)), layer.weight, depthwise=depthwise, free=per_channel
        )
        assert step.conv.bias is not None
        step.conv.weight.div_(factors_C.view(-1, 1, 1, 1))
        step.conv.bias.div_(factors_C)
        place = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
        layer.weight.mul_(factors_C.view(*place[: layer.weight.dim()]))
        return x_NCHW / factors_C.view(1, -1, 1, 1)

    steps.walk(images_NCHW, compute)
    return equal


@torch.no_grad()
def room_for_biases(network: nn.Module, images_NCHW: Tensor) -> nn.Module:
    """A copy that computes the same to a ten-thousandth of its biases, each of which fits into 32 bits.

    A bias is stored as a multiple of the scales of its channel's weights and of the layer's input. A channel
    that training has switched off has weights next to nothing, and a runtime that rounds its bias to such steps
    runs out of integers: the largest of those weights is raised until it does not.

    Args:
        network: batch norm folded.
        images_NCHW: real images, preprocessed; their activations say what the inputs' scales are.
    """
    roomy = copy.deepcopy(network)

    def compute(_: str, step: Step, x_NCHW: Tensor) -> Tensor:
        layer = layer_of(step)
        scale = Range.of(x_NCHW).scale
        y_NCHW: Tensor = step(x_NCHW)
        if layer is None or layer.bias is None or not scale:
            return y_NCHW
        weights_CW = layer.weight.view(len(layer.weight), -1)
        least_C = layer.bias.abs() * LARGEST / (MOST_STEPS * scale)
        largest_C, where_C = weights_CW.abs().max(1)
        small = (largest_C < least_C).nonzero().flatten()
        places = small, where_C[small]
        weights_CW[places] = least_C[small].copysign(weights_CW[places])
        return y_NCHW

    steps_of(roomy).walk(images_NCHW, compute)
    return roomy


def _factors(ranges_C: Tensor, weights: Tensor, *, depthwise: bool, free: bool) -> Tensor:
    """What each channel is divided by; the largest is 1.

    Args:
        weights: of the layer that follows.
        free: a depthwise layer's scale for each of its channels takes up any factor.
    """
    ranges_C = _clamped(ranges_C)
    if depthwise and free:
        return ranges_C / ranges_C.max()
    others = [axis for axis in range(weights.dim()) if axis != (0 if depthwise else 1)]
    factors_C = (ranges_C / _clamped(weights.abs().amax(others))).sqrt()
    return factors_C / factors_C.max()


def _clamped(ranges_C: Tensor) -> Tensor:
    """Channels that hardly ever speak must not become loud; a layer that never does stays as it is."""
    return ranges_C.clamp(min=max(float(ranges_C.max()) * SMALLEST, 1e-12))
