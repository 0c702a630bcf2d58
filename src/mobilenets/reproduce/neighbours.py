"""The networks that Tables 8, 9 and 13 compare with, as layer rows that `cost.count` can count.

Sources: Szegedy et al. 2014 (GoogLeNet, Table 1), Simonyan and Zisserman 2014 (VGG, column D),
Iandola et al. 2016 (SqueezeNet 1.0, Table 1), Krizhevsky et al. 2012 (AlexNet, two groups).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from mobilenets.architecture.detector import COCO_CLASSES, PROPOSALS
from mobilenets.architecture.layer_rows import Layer

# Channels of one stage of 3x3 convolutions; every stage ends in a 2x2 pool.
_VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

ALEXNET_CHANNELS = (96, 256, 384, 384, 256)


class _Inception(NamedTuple):
    """Channels of one module's four branches: 1x1, 3x3, 5x5 and pool; `reduce` is the 1x1 before."""

    name: str
    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int
    pool_after: bool = False


class _Fire(NamedTuple):
    """A 1x1 squeeze, then 1x1 and 3x3 side by side with `expand` channels each."""

    name: str
    squeeze: int
    expand: int
    pool_after: bool = False


_INCEPTIONS = (
    _Inception("inception3a", 64, 96, 128, 16, 32, 32),
    _Inception("inception3b", 128, 128, 192, 32, 96, 64, pool_after=True),
    _Inception("inception4a", 192, 96, 208, 16, 48, 64),
    _Inception("inception4b", 160, 112, 224, 24, 64, 64),
    _Inception("inception4c", 128, 128, 256, 24, 64, 64),
    _Inception("inception4d", 112, 144, 288, 32, 64, 64),
    _Inception("inception4e", 256, 160, 320, 32, 128, 128, pool_after=True),
    _Inception("inception5a", 256, 160, 320, 32, 128, 128),
    _Inception("inception5b", 384, 192, 384, 48, 128, 128),
)

_FIRES = (
    _Fire(name="fire2", squeeze=16, expand=64),
    _Fire(name="fire3", squeeze=16, expand=64),
    _Fire(name="fire4", squeeze=32, expand=128, pool_after=True),
    _Fire(name="fire5", squeeze=32, expand=128),
    _Fire(name="fire6", squeeze=48, expand=192),
    _Fire(name="fire7", squeeze=48, expand=192),
    _Fire(name="fire8", squeeze=64, expand=256, pool_after=True),
    _Fire(name="fire9", squeeze=64, expand=256),
)


def googlenet(*, third_kernel: int = 5, batch_norm: bool = False) -> tuple[Layer, ...]:
    """GoogLeNet for 224 pixels and 1,000 classes, without its two auxiliary heads.

    Args:
        third_kernel: side of the third branch's kernel: 5 as published, 3 in torchvision.
        batch_norm: batch norm in place of the convolutions' biases, as in torchvision.

    >>> from mobilenets.cost import count
    >>> count(googlenet()).mult_adds, count(googlenet()).weights
    (1582671872, 6990272)
    """
    return tuple(_googlenet(third_kernel, batch_norm))


def _googlenet(third_kernel: int, batch_norm: bool) -> Iterator[Layer]:
    def conv(
        name: str, channels: tuple[int, int], side: int, kernel: int = 1, stride: int = 1
    ) -> Layer:
        return _conv(
            name,
            channels,
            side,
            kernel=kernel,
            stride=stride,
            padding=kernel // 2,
            batch_norm=batch_norm,
        )

    yield conv("conv1", (3, 64), 224, kernel=7, stride=2)
    side = _pooled(112)
    yield conv("conv2", (64, 64), side)
    yield conv("conv3", (64, 192), side, kernel=3)
    side, channels = _pooled(side), 192
    for row in _INCEPTIONS:
        yield conv(f"{row.name}.one", (channels, row.one), side)
        yield conv(f"{row.name}.three_reduce", (channels, row.three_reduce), side)
        yield conv(f"{row.name}.three", (row.three_reduce, row.three), side, kernel=3)
        yield conv(f"{row.name}.five_reduce", (channels, row.five_reduce), side)
        yield conv(f"{row.name}.five", (row.five_reduce, row.five), side, kernel=third_kernel)
        yield conv(f"{row.name}.pool", (channels, row.pool), side)
        channels = row.one + row.three + row.five + row.pool
        side = _pooled(side) if row.pool_after else side
    yield _linear("classifier", channels, 1000)


def vgg16() -> tuple[Layer, ...]:
    """VGG-16 for 224 pixels and 1,000 classes.

    >>> from mobilenets.cost import count
    >>> count(vgg16()).mult_adds, count(vgg16()).parameters
    (15470264320, 138357544)
    """
    return tuple(_vgg16())


def _vgg16() -> Iterator[Layer]:
    body = tuple(_vgg16_body(224))
    yield from body
    yield from _three_linear(body[-1].out_channels * (224 // 32) ** 2)


def _vgg16_body(side: int) -> Iterator[Layer]:
    channels = 3
    for stage, widths in enumerate(_VGG_STAGES, start=1):
        for position, width in enumerate(widths, start=1):
            name = f"conv{stage}_{position}"
            yield _conv(name, (channels, width), side, kernel=3, padding=1)
            channels = width
        side //= 2


def faster_rcnn_on_vgg16(side: int) -> tuple[Layer, ...]:
    """Faster R-CNN on VGG-16 for COCO's 90 classes: 12 boxes a place, 300 proposals of 7x7.

    >>> from mobilenets.cost import count
    >>> count(faster_rcnn_on_vgg16(300)).mult_adds
    64304090112
    """
    return tuple(_faster_rcnn_on_vgg16(side))


def _faster_rcnn_on_vgg16(side: int) -> Iterator[Layer]:
    body = tuple(_vgg16_body(side))
    yield from body
    channels, (side, _) = body[-1].out_channels, body[-1].out_size
    yield _conv("rpn.conv", (channels, channels), side, kernel=3, padding=1)
    yield _conv("rpn.outputs", (channels, 12 * (2 + 4)), side)
    features = channels * 7 * 7
    for layer in (
        _linear("fc6", features, 4096),
        _linear("fc7", 4096, 4096),
        _linear("scores", 4096, COCO_CLASSES + 1),
        _linear("boxes", 4096, 4 * COCO_CLASSES),
    ):
        yield replace(layer, repeats=PROPOSALS)


def squeezenet(*, side: int = 227, last_padding: int = 0) -> tuple[Layer, ...]:
    """SqueezeNet 1.0 for 1,000 classes.

    Args:
        side: input in pixels, 227 as published; torchvision's examples use 224.
        last_padding: pixels around the last 1x1 convolution, 1 in the Caffe release.

    >>> from mobilenets.cost import count
    >>> count(squeezenet()).mult_adds, count(squeezenet()).parameters
    (832667936, 1248424)
    """
    return tuple(_squeezenet(side, last_padding))


def _squeezenet(side: int, last_padding: int) -> Iterator[Layer]:
    first = _conv("conv1", (3, 96), side, kernel=7, stride=2)
    yield first
    side, channels = _pooled(first.out_size[0]), 96
    for row in _FIRES:
        yield _conv(f"{row.name}.squeeze", (channels, row.squeeze), side)
        yield _conv(f"{row.name}.expand1", (row.squeeze, row.expand), side)
        yield _conv(f"{row.name}.expand3", (row.squeeze, row.expand), side, kernel=3, padding=1)
        channels = 2 * row.expand
        side = _pooled(side) if row.pool_after else side
    yield _conv("conv10", (channels, 1000), side, padding=last_padding)


def alexnet(
    *,
    channels: tuple[int, int, int, int, int] = ALEXNET_CHANNELS,
    groups: int = 2,
    side: int = 227,
    first_padding: int = 0,
) -> tuple[Layer, ...]:
    """AlexNet for 1,000 classes.

    Args:
        channels: outputs of the five convolutions; torchvision has 64, 192, 384, 256, 256.
        groups: of the second, fourth and fifth convolution, 2 as published; torchvision has 1.
        side: input in pixels, 227 (what the published 224 must have been); torchvision has 224.
        first_padding: pixels around the input; torchvision has 2.

    >>> from mobilenets.cost import count
    >>> count(alexnet()).mult_adds, count(alexnet()).parameters
    (724406816, 60965224)
    """
    return tuple(_alexnet(channels, groups, side, first_padding))


def _alexnet(
    channels: tuple[int, int, int, int, int], groups: int, side: int, first_padding: int
) -> Iterator[Layer]:
    one, two, three, four, five = channels
    first = _conv("conv1", (3, one), side, kernel=11, stride=4, padding=first_padding)
    yield first
    side = _pooled(first.out_size[0])
    yield _conv("conv2", (one, two), side, kernel=5, padding=2, groups=groups)
    side = _pooled(side)
    yield _conv("conv3", (two, three), side, kernel=3, padding=1)
    yield _conv("conv4", (three, four), side, kernel=3, padding=1, groups=groups)
    yield _conv("conv5", (four, five), side, kernel=3, padding=1, groups=groups)
    yield from _three_linear(five * _pooled(side) ** 2)


def _three_linear(features: int) -> Iterator[Layer]:
    yield _linear("fc6", features, 4096)
    yield _linear("fc7", 4096, 4096)
    yield _linear("fc8", 4096, 1000)


def _conv(
    name: str,
    channels: tuple[int, int],
    side: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    batch_norm: bool = False,
) -> Layer:
    out_side = (side + 2 * padding - kernel) // stride + 1
    return Layer(
        name=name,
        type="pointwise" if kernel == 1 else "conv",
        in_channels=channels[0],
        out_channels=channels[1],
        kernel=kernel,
        stride=stride,
        groups=groups,
        in_size=(side, side),
        out_size=(out_side, out_side),
        bias=not batch_norm,
        batch_norm=batch_norm,
    )


def _linear(name: str, in_channels: int, out_channels: int) -> Layer:
    return Layer(
        name=name, type="linear", in_channels=in_channels, out_channels=out_channels, bias=True
    )


def _pooled(side: int) -> int:
    """After a 3x3 pool of stride 2 whose last window may hang over the edge."""
    return -(-(side - 3) // 2) + 1
