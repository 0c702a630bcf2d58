"""SSD on a MobileNet: every box of a fixed grid is moved and named in one pass.

Shapes: N images, C channels, H height, W width, A boxes, K classes and the background, which is class 0, L levels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mobilenets.architecture.detector import (
    TAPS,
    TOWER_LAYERS,
    DetectorSpec,
    detector_layers,
    levels_of,
)
from mobilenets.architecture.layer_rows import Layer
from mobilenets.architecture.layers import ConvUnit
from mobilenets.architecture.network import MobileNet, forward_blocks, units_of
from mobilenets.architecture.steps import Step, Steps, chain

# TensorFlow's; what lies behind it is batch norm, or a score that should begin near nothing.
_DEVIATION = 0.03
# The share of a pyramid's boxes that are taken to hold something at first (Lin et al. 2017, arXiv 1708.02002).
_PRIOR = 0.01


class Ssd(nn.Module):
    """SSD with a head of 1x1 on each of six maps (section 4.6).

    The body's weights have the names that they have in a `MobileNet`.

    Args:
        spec: of framework `ssd`.
        num_classes: without the background.

    >>> network = Ssd(DetectorSpec.parse("ssd300/0.25"), num_classes=3).eval()
    >>> network(torch.zeros(2, 3, 300, 300)).shape
    torch.Size([2, 1917, 8])
    """

    def __init__(self, spec: DetectorSpec, num_classes: int) -> None:
        super().__init__()
        rows = {row.name: row for row in detector_layers(spec, num_classes)}
        count = len(levels_of(spec))
        self.spec, self.num_classes = spec, num_classes
        self.body = MobileNet(spec.body, None).body
        self.extras = nn.ModuleList(
            nn.Sequential(
                *(_unit(rows[f"level{level}.{part}"], spec) for part in ("narrow", "wide"))
            )
            for level in range(2, count)
        )
        self.box_heads, self.score_heads = (
            nn.ModuleList(_head(rows[f"level{level}.{part}"]) for level in range(count))
            for part in ("boxes", "scores")
        )
        for module in self.extras.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_DEVIATION)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, A, 4 + 1 + K): how each box is moved, and its scores before sigmoid or softmax."""
        return torch.cat(self.parts(images_NCHW), -1)

    def parts(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The same in two: (N, A, 4) and (N, A, 1 + K)."""
        maps = _taps(self.body, images_NCHW, TAPS[1:])
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        boxes = [head(x_NCHW) for head, x_NCHW in zip(self.box_heads, maps, strict=True)]
        scores = [head(x_NCHW) for head, x_NCHW in zip(self.score_heads, maps, strict=True)]
        return self._joined(boxes, scores)

    def steps(self) -> Steps:
        """Its convolutions: the body's, the levels beyond it, the heads of all levels."""
        modules: dict[str, Step] = {**units_of(self.body)}
        sources = chain(modules)
        maps = [f"block{number}.pointwise" for number in TAPS[1:]]
        for level, extra in enumerate(self.extras, start=len(maps)):
            assert isinstance(extra, nn.Sequential)
            units: dict[str, Step] = {
                f"level{level}.{part}": unit  # type: ignore[misc]
                for part, unit in zip(("narrow", "wide"), extra, strict=True)
            }
            sources |= chain(units, maps[-1])
            modules |= units
            maps.append(f"level{level}.wide")
        for part, heads in (("boxes", self.box_heads), ("scores", self.score_heads)):
            for level, head in enumerate(heads):
                assert isinstance(head, nn.Conv2d)
                modules[f"level{level}.{part}"] = head
                sources[f"level{level}.{part}"] = maps[level]
        return Steps(modules, sources, self._join)

    def _join(self, ends: Mapping[str, Tensor]) -> Tensor:
        boxes, scores = (
            [ends[f"level{level}.{part}"] for level in range(len(self.box_heads))]
            for part in ("boxes", "scores")
        )
        return torch.cat(self._joined(boxes, scores), -1)

    def _joined(self, boxes: Sequence[Tensor], scores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return _by_box(boxes, 4), _by_box(scores, self.num_classes + 1)


class PyramidSsd(nn.Module):
    """SSD on a feature pyramid of five maps, with heads of 3x3 that the maps share.

    The form of TensorFlow's `ssd_mobilenet_v1_fpn_shared_box_predictor`: each map has batch norm of its own in the
    heads. The body's weights have the names that they have in a `MobileNet`.

    Args:
        spec: of framework `ssdfpn`.
        num_classes: without the background.

    >>> network = PyramidSsd(DetectorSpec.parse("ssdfpn128/0.25"), num_classes=3).eval()
    >>> network(torch.zeros(2, 3, 128, 128)).shape
    torch.Size([2, 2046, 8])
    """

    def __init__(self, spec: DetectorSpec, num_classes: int) -> None:
        super().__init__()
        rows = {row.name: row for row in detector_layers(spec, num_classes)}
        levels = levels_of(spec)
        channels = levels[0].channels
        self.spec, self.num_classes = spec, num_classes
        self.body = MobileNet(spec.body, None).body
        taps = [rows[f"block{block}.pointwise"].out_channels for block in TAPS]
        top = LastLevelP6P7(channels, channels)
        self.pyramid = FeaturePyramidNetwork(taps, channels, top)
        epsilon = spec.body.batch_norm_epsilon
        self.box_tower, self.score_tower = (
            _Tower(rows[f"level0.{part}"], len(levels), epsilon) for part in ("boxes", "scores")
        )
        bias = self.score_tower.last.bias
        assert bias is not None
        nn.init.constant_(bias, -math.log((1 - _PRIOR) / _PRIOR))
        # Most boxes hold nothing, which is class 0.
        with torch.no_grad():
            bias.view(-1, num_classes + 1)[:, 0].neg_()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, A, 4 + 1 + K): how each box is moved, and its scores before the sigmoid."""
        return torch.cat(self.parts(images_NCHW), -1)

    def parts(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The same in two: (N, A, 4) and (N, A, 1 + K)."""
        taps = _taps(self.body, images_NCHW, TAPS)
        maps = list(self.pyramid(OrderedDict(zip(map(str, TAPS), taps, strict=True))).values())
        boxes, scores = self.box_tower(maps), self.score_tower(maps)
        return _by_box(boxes, 4), _by_box(scores, self.num_classes + 1)


class _Tower(nn.Module):
    """Convolutions that all maps share, each map with batch norm of its own."""

    def __init__(self, last: Layer, levels: int, epsilon: float) -> None:
        super().__init__()
        channels = last.in_channels
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(TOWER_LAYERS)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels, eps=epsilon) for _ in range(TOWER_LAYERS))
            for _ in range(levels)
        )
        self.last = _head(last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=_DEVIATION)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What the tower says of each map."""
        found = []
        for x_NCHW, norms in zip(maps, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            for conv, norm in zip(self.convs, norms, strict=True):
                x_NCHW = norm(conv(x_NCHW)).relu()
            found.append(self.last(x_NCHW))
        return found


def _unit(row: Layer, spec: DetectorSpec) -> ConvUnit:
    assert isinstance(row.kernel, int)
    return ConvUnit(
        row.in_channels,
        row.out_channels,
        kernel=row.kernel,
        stride=row.stride,
        padding=spec.padding,
        activation=spec.body.activation,
        batch_norm_epsilon=spec.body.batch_norm_epsilon,
    )


def _head(row: Layer) -> nn.Conv2d:
    assert isinstance(row.kernel, int)
    head = nn.Conv2d(row.in_channels, row.out_channels, row.kernel, padding=row.kernel // 2)
    nn.init.trunc_normal_(head.weight, std=_DEVIATION)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return head


def _taps(body: nn.ModuleDict, images_NCHW: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """What those blocks of a body put out."""
    maps = forward_blocks(body, images_NCHW, [f"block{number}" for number in blocks])
    return list(maps.values())


def _by_box(maps: Sequence[Tensor], values: int) -> Tensor:
    """Of maps (N, S * values, H, W) the values of each box, in the order of `boxes_of`: (N, A, values)."""
    found = []
    for x_NCHW in maps:
        count, channels, height, width = x_NCHW.shape
        # Told in full: of no image at all, as one of several processes may have, nothing follows.
        boxes = height * width * channels // values
        found.append(x_NCHW.permute(0, 2, 3, 1).reshape(count, boxes, values))
    return torch.cat(found, 1)
