"""The two layers that a MobileNet is made of, with the three paddings found in the wild.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenets.architecture.body import Padding
from mobilenets.architecture.spec import Activation

LEAKY_SLOPE = 0.1
SMALL_MAP = 64


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, activation (section 3.2, Figure 3).

    Args:
        in_channels, out_channels: channels in and out.
        kernel: side of the kernel, 1 or 3.
        stride: 1 or 2.
        groups: `in_channels` for a depthwise convolution.
        padding: where a 3x3 kernel of stride 2 pads; the three agree at stride 1.
        first: the first layer of the network, which Keras pads as TensorFlow does.

    >>> import torch
    >>> ConvUnit(3, 32, kernel=3, stride=2)(torch.zeros(2, 3, 224, 224)).shape
    torch.Size([2, 32, 112, 112])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "torch",
        activation: Activation = "relu",
        batch_norm_epsilon: float = 1e-5,
        first: bool = False,
    ) -> None:
        super().__init__()
        padded_here = kernel == 3 and stride == 2 and padding != "torch"
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=0 if padded_here else kernel // 2,
            groups=groups,
            bias=False,
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels, eps=batch_norm_epsilon)
        self.activation = _activation(activation)
        self._pads_below_only = padding == "keras" and not first
        self._padded_here = padded_here

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        result: Tensor = self.activation(self.norm(self.convolve(x_NCHW)))
        return result

    def convolve(self, x_NCHW: Tensor) -> Tensor:
        """Padding and convolution alone; in training on a CPU, by the operator whose backward pass is fastest.

        oneDNN takes 16 ms to go back through 1,024 depthwise filters on a 2x2 map, and 1 ms when
        the map is padded beforehand; a pointwise layer on a small map is quicker as a matrix
        product; in bfloat16 a depthwise layer of stride 2 takes five times as long back as one of
        stride 1 of which every second row and column is kept (`benchmarks/train_throughput.py`;
        docs/log.md).
        """
        if self._padded_here:
            x_NCHW = self._pad(x_NCHW)
        conv = self.conv
        if self.training and x_NCHW.device.type == "cpu":
            height, width = x_NCHW.shape[-2:]
            if conv.kernel_size == (1, 1) and height * width <= SMALL_MAP:
                y_NHWC = F.linear(x_NCHW.permute(0, 2, 3, 1), conv.weight.flatten(1))
                return y_NHWC.permute(0, 3, 1, 2)
            if conv.groups > 1 and conv.padding == (1, 1) and min(height, width) <= 2:
                padded_NCHW = F.pad(x_NCHW, (1, 1, 1, 1))
                return F.conv2d(padded_NCHW, conv.weight, stride=conv.stride, groups=conv.groups)
            if conv.groups > 1 and conv.stride == (2, 2) and x_NCHW.dtype == torch.bfloat16:
                dense_NCHW = F.conv2d(x_NCHW, conv.weight, padding=conv.padding, groups=conv.groups)
                return dense_NCHW[..., ::2, ::2].contiguous(memory_format=torch.channels_last)
        result: Tensor = conv(x_NCHW)
        return result

    def _pad(self, x_NCHW: Tensor) -> Tensor:
        height, width = x_NCHW.shape[-2:]
        # TensorFlow's SAME at stride 2 pads below and right of an even side, all round an odd one.
        left = 0 if self._pads_below_only or width % 2 == 0 else 1
        top = 0 if self._pads_below_only or height % 2 == 0 else 1
        return F.pad(x_NCHW, (left, 1, top, 1))


class SeparableBlock(nn.Module):
    """Depthwise 3x3, then pointwise 1x1, each with batch norm and activation (section 3.1).

    The stride sits on the depthwise convolution.

    >>> import torch
    >>> SeparableBlock(32, 64, stride=2)(torch.zeros(2, 32, 112, 112)).shape
    torch.Size([2, 64, 56, 56])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        padding: Padding = "torch",
        activation: Activation = "relu",
        batch_norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.depthwise = ConvUnit(
            in_channels,
            in_channels,
            kernel=3,
            stride=stride,
            groups=in_channels,
            padding=padding,
            activation=activation,
            batch_norm_epsilon=batch_norm_epsilon,
        )
        self.pointwise = ConvUnit(
            in_channels,
            out_channels,
            kernel=1,
            activation=activation,
            batch_norm_epsilon=batch_norm_epsilon,
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        result: Tensor = self.pointwise(self.depthwise(x_NCHW))
        return result


def _activation(name: Activation) -> nn.Module:
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "relu6":
            return nn.ReLU6(inplace=True)
        case "leaky":
            return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
    assert_never(name)
