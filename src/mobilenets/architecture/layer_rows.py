"""The body's layers written out for one member of the family, as rows that cost can count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mobilenets.architecture.body import body_rows, convolved_size
from mobilenets.architecture.spec import MobileNetSpec

LayerType = Literal["conv", "depthwise", "pointwise", "linear"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution or linear layer, with all that its cost needs. Sizes are `(height, width)`.

    Args:
        repeats: how often it runs for one image, such as once for each proposal.
        shared: its weights and bias are those of an earlier row.
    """

    name: str
    type: LayerType
    in_channels: int
    out_channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    groups: int = 1
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    bias: bool = False
    batch_norm: bool = False
    repeats: int = 1
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class Block:
    """One row of the body as it is built: the paper's number, channels and stride."""

    index: int
    kind: Literal["conv", "separable"]
    in_channels: int
    out_channels: int
    stride: int
    reduction: int


def blocks_of(spec: MobileNetSpec) -> tuple[Block, ...]:
    """The rows of Table 1 for one specification, first convolution included.

    `reduction` is the input size over the size that the block puts out.

    >>> blocks_of(MobileNetSpec(0.5, 160))[-1].out_channels
    512
    """
    rows = []
    channels, reduction = spec.input_channels, 1
    for index, row, stride in body_rows(spec.variant, spec.total_stride):
        out_channels = spec.channels(row.channels)
        reduction *= stride
        rows.append(
            Block(
                index=index,
                kind="conv" if spec.variant == "fullconv" else row.kind,
                in_channels=channels,
                out_channels=out_channels,
                stride=stride,
                reduction=reduction,
            )
        )
        channels = out_channels
    return tuple(rows)


def layers_of(spec: MobileNetSpec, num_classes: int | None = 1000) -> tuple[Layer, ...]:
    """Every convolution of the network in order, and the classifier unless `num_classes` is None.

    >>> len(layers_of(MobileNetSpec())), len(layers_of(MobileNetSpec(), num_classes=None))
    (28, 27)
    """
    return tuple(_layers(spec, num_classes))


def _layers(spec: MobileNetSpec, num_classes: int | None) -> Iterator[Layer]:
    size, channels = (spec.height, spec.across), spec.input_channels
    for block in blocks_of(spec):
        first, channels = block.index == 0, block.out_channels
        out_size = (
            convolved_size(size[0], block.stride, spec.padding, first=first),
            convolved_size(size[1], block.stride, spec.padding, first=first),
        )
        if block.kind == "conv":
            yield Layer(
                name=f"conv{block.index}",
                type="conv",
                in_channels=block.in_channels,
                out_channels=block.out_channels,
                kernel=3,
                stride=block.stride,
                in_size=size,
                out_size=out_size,
                batch_norm=True,
            )
        else:
            yield Layer(
                name=f"block{block.index}.depthwise",
                type="depthwise",
                in_channels=block.in_channels,
                out_channels=block.in_channels,
                kernel=3,
                stride=block.stride,
                groups=block.in_channels,
                in_size=size,
                out_size=out_size,
                batch_norm=True,
            )
            yield Layer(
                name=f"block{block.index}.pointwise",
                type="pointwise",
                in_channels=block.in_channels,
                out_channels=block.out_channels,
                in_size=out_size,
                out_size=out_size,
                batch_norm=True,
            )
        size = out_size
    if num_classes is not None:
        if num_classes < 1:
            raise ValueError(f"a classifier needs at least one class, not {num_classes}")
        yield Layer(
            name="classifier",
            type="linear",
            in_channels=channels,
            out_channels=num_classes,
            bias=True,
        )
