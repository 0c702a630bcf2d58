"""The network, built from the rows of Table 1.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from mobilenets.architecture.layer_rows import Block, blocks_of
from mobilenets.architecture.layers import ConvUnit, SeparableBlock
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.architecture.steps import Head, Step, Steps, chain

PAPER_DROPOUT = 0.001


@dataclass(frozen=True)
class Tap:
    """Where the features of one stride come out: the last block at that stride."""

    block: str
    channels: int


class MobileNet(nn.Module):
    """A MobileNet V1: body, global average pool, dropout, linear classifier.

    Args:
        spec: width, resolution, variant, strides, activation, padding.
        num_classes: outputs; None leaves the classifier out, and `forward` gives pooled features.
        dropout: share of pooled features dropped in training. 0.001 is TensorFlow-Slim's, whose
            `keep_prob=0.999` is often copied as if it were the share to drop.

    Initial weights: convolutions normal with standard deviation `sqrt(2 / fan_out)`, fan-out per
    group (He et al. 2015, arXiv 1502.01852); batch norm 1 and 0; classifier normal with 0.01, bias
    0 (Goyal et al. 2017, arXiv 1706.02677). TensorFlow-Slim's 0.09 for all is not used.

    The input may have any size that leaves a feature map; the spec's resolution is what the
    model is meant for.

    >>> import torch
    >>> model = MobileNet(MobileNetSpec(0.25, 128), num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 128, 128)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        spec: MobileNetSpec,
        num_classes: int | None = 1000,
        *,
        dropout: float = PAPER_DROPOUT,
    ) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"a classifier needs at least one class, not {num_classes}")
        self.spec = spec
        rows = blocks_of(spec)
        self.body = nn.ModuleDict({_name(row): _build(row, spec) for row in rows})
        self.taps: dict[int, Tap] = {
            row.reduction: Tap(block=_name(row), channels=row.out_channels) for row in rows
        }
        self.feature_channels = rows[-1].out_channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = (
            nn.Identity() if num_classes is None else nn.Linear(self.feature_channels, num_classes)
        )
        _initialise(self)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K), or pooled features (N, C) without a classifier."""
        logits_NK: Tensor = self.classifier(self.dropout(self.pooled_features(images_NCHW)))
        return logits_NK

    def pooled_features(self, images_NCHW: Tensor) -> Tensor:
        """What the classifier sees: (N, C)."""
        features_NC: Tensor = self.pool(self.forward_features(images_NCHW)).flatten(1)
        return features_NC

    def forward_features(self, images_NCHW: Tensor) -> Tensor:
        """The last feature map: (N, 1024, 7, 7) at width 1 and 224 pixels."""
        x_NCHW = images_NCHW
        for block in self.body.values():
            x_NCHW = block(x_NCHW)
        return x_NCHW

    def steps(self) -> Steps:
        """Its convolutions, and the classifier.

        >>> names = list(MobileNet(MobileNetSpec()).steps().modules)
        >>> names[0], names[1], names[-1], len(names)
        ('conv0', 'block1.depthwise', 'classifier', 28)
        """
        modules: dict[str, Step] = {**units_of(self.body)}
        modules["classifier"] = Head(self.pool, self.classifier)
        return Steps(modules, chain(modules), lambda ends: ends["classifier"])

    def forward_taps(self, images_NCHW: Tensor, strides: Iterable[int]) -> dict[int, Tensor]:
        """Feature maps by stride, such as 16 and 32 for detection; channels are in `taps`.

        Raises:
            ValueError: no features come out at that stride.

        >>> import torch
        >>> model = MobileNet(MobileNetSpec(1.0, 224), num_classes=None).eval()
        >>> maps = model.forward_taps(torch.zeros(1, 3, 224, 224), (16, 32))
        >>> [tuple(maps[stride].shape) for stride in (16, 32)]
        [(1, 512, 14, 14), (1, 1024, 7, 7)]
        """
        wanted = set(strides)
        if not wanted or not wanted <= set(self.taps):
            raise ValueError(
                f"{self.spec} has features at strides {', '.join(map(str, self.taps))}, "
                f"not at {', '.join(map(str, sorted(wanted - set(self.taps)))) or 'none'}"
            )
        stride_of = {self.taps[stride].block: stride for stride in wanted}
        maps = forward_blocks(self.body, images_NCHW, stride_of)
        return {stride_of[name]: x_NCHW for name, x_NCHW in maps.items()}


def forward_blocks(
    body: nn.ModuleDict, images_NCHW: Tensor, names: Collection[str]
) -> dict[str, Tensor]:
    """What those blocks of a body put out; it runs no further than the last of them."""
    maps: dict[str, Tensor] = {}
    x_NCHW = images_NCHW
    for name, block in body.items():
        x_NCHW = block(x_NCHW)
        if name in names:
            maps[name] = x_NCHW
            if len(maps) == len(names):
                break
    return maps


def units_of(body: nn.ModuleDict) -> dict[str, ConvUnit]:
    """A body's convolutions, by name, in the order in which they compute."""
    return {name: unit for name, unit in body.named_modules() if isinstance(unit, ConvUnit)}


def _name(row: Block) -> str:
    return f"conv{row.index}" if row.kind == "conv" else f"block{row.index}"


def _build(row: Block, spec: MobileNetSpec) -> nn.Module:
    if row.kind == "conv":
        return ConvUnit(
            row.in_channels,
            row.out_channels,
            kernel=3,
            stride=row.stride,
            padding=spec.padding,
            activation=spec.activation,
            batch_norm_epsilon=spec.batch_norm_epsilon,
            first=row.index == 0,
        )
    return SeparableBlock(
        row.in_channels,
        row.out_channels,
        stride=row.stride,
        padding=spec.padding,
        activation=spec.activation,
        batch_norm_epsilon=spec.batch_norm_epsilon,
    )


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
