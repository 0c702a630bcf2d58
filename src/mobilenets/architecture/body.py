"""The paper's Table 1 as data: the only source of strides and channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Padding = Literal["torch", "tensorflow", "keras"]
Variant = Literal["separable", "fullconv", "shallow"]


@dataclass(frozen=True, kw_only=True)
class BodyRow:
    """One line of Table 1: a full convolution or a depthwise-separable block, 3x3."""

    kind: Literal["conv", "separable"]
    channels: int
    stride: int


BODY: tuple[BodyRow, ...] = (
    BodyRow(kind="conv", channels=32, stride=2),
    BodyRow(kind="separable", channels=64, stride=1),
    BodyRow(kind="separable", channels=128, stride=2),
    BodyRow(kind="separable", channels=128, stride=1),
    BodyRow(kind="separable", channels=256, stride=2),
    BodyRow(kind="separable", channels=256, stride=1),
    BodyRow(kind="separable", channels=512, stride=2),
    BodyRow(kind="separable", channels=512, stride=1),
    BodyRow(kind="separable", channels=512, stride=1),
    BodyRow(kind="separable", channels=512, stride=1),
    BodyRow(kind="separable", channels=512, stride=1),
    BodyRow(kind="separable", channels=512, stride=1),
    BodyRow(kind="separable", channels=1024, stride=2),
    # The paper prints stride 2 here, but its next row's input is 7x7: tensorflow/models#1997.
    BodyRow(kind="separable", channels=1024, stride=1),
)
SHALLOW_WITHOUT = range(7, 12)


def body_rows(variant: Variant, total_stride: int) -> tuple[tuple[int, BodyRow, int], ...]:
    """The rows that a variant keeps: number, row, and its stride.

    A total stride below 32 turns the earliest strides of 2 to 1.

    >>> [stride for _, _, stride in body_rows("shallow", 8)]
    [1, 1, 1, 1, 2, 1, 2, 2, 1]
    """
    to_relax = (32 // total_stride).bit_length() - 1
    rows = []
    for index, row in enumerate(BODY):
        if variant == "shallow" and index in SHALLOW_WITHOUT:
            continue
        relaxed = row.stride == 2 and to_relax > 0
        to_relax -= relaxed
        rows.append((index, row, 1 if relaxed else row.stride))
    return tuple(rows)


def convolved_size(size: int, stride: int, padding: Padding, *, first: bool) -> int:
    """Length of one side after a 3x3 convolution; 0 where nothing is left.

    `keras` pads below and right only when the stride is 2, except in the first layer.

    >>> [convolved_size(75, 2, padding, first=False) for padding in ("torch", "tensorflow", "keras")]
    [38, 38, 37]
    """
    if padding == "keras" and stride == 2 and not first:
        return size // 2
    return -(-size // stride)
