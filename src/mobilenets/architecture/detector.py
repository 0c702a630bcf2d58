"""SSD and Faster R-CNN on a MobileNet: names, anchors' shapes, and layer rows that cost can count.

Sources: section 4.6 of the paper; Liu et al. 2016 (SSD); Ren et al. 2015 (Faster R-CNN); the forms of the
TensorFlow Object Detection API (`ssd_mobilenet_v1_feature_extractor.py`,
`faster_rcnn_mobilenet_v1_feature_extractor.py`, `multiple_grid_anchor_generator.py`), whose costs
Table 13 prints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Literal, get_args

from mobilenets.architecture.body import Padding, convolved_size
from mobilenets.architecture.layer_rows import Layer, layers_of
from mobilenets.architecture.spec import Activation, MobileNetSpec, check_width

Framework = Literal["ssd", "ssdfpn", "frcnn"]

COCO_CLASSES = 90
# An output of 1 moves a box by a tenth of its side, or makes its side e ** 0.2 times as long; the names are TensorFlow's.
BOX_SCALES = {"x_scale": 10.0, "y_scale": 10.0, "w_scale": 5.0, "h_scale": 5.0}
SMALLEST_SIDE = 33
# Blocks whose feature maps, of strides 8, 16 and 32, are looked at.
TAPS = (5, 11, 13)

_LEAST_CHANNELS = 16
_EXTRA_CHANNELS = (512, 256, 256, 128)
_PYRAMID_CHANNELS = 256
_PYRAMID_LEVELS = 5
TOWER_LAYERS = 4
_RPN_CHANNELS = 512
CROP = (14, 14)
PROPOSALS = 300

_NAME = re.compile(r"(?P<framework>[a-z]+)(?P<height>\d+)(?:x(?P<across>\d+))?/(?P<width>.+)")


@dataclass(frozen=True)
class DetectorSpec:
    """A detector: how it detects, and the body on which it does.

    Its name is framework, side in pixels and width, and leaves out what the name of a `MobileNetSpec` leaves
    out too.

    Args:
        framework: `ssd` (SSD), `ssdfpn` (SSD on a feature pyramid, with heads shared by its levels) or `frcnn`
            (Faster R-CNN).
        body: the network that it stands on, as it would classify: total stride 32, separable.

    Raises:
        ValueError: one sentence that names the value and what is allowed.

    >>> str(DetectorSpec("ssd", MobileNetSpec(0.5, 300)))
    'ssd300/0.5'
    """

    framework: Framework
    body: MobileNetSpec

    def __post_init__(self) -> None:
        if self.framework not in get_args(Framework):
            raise ValueError(
                f"a detector is one of {', '.join(get_args(Framework))}, not {self.framework!r}"
            )
        if self.body.total_stride != 32 or self.body.variant != "separable":
            raise ValueError(
                f"a detector stands on a plain body such as 1.0-300, not on {self.body}"
            )
        if min(self.body.height, self.body.across) < SMALLEST_SIDE:
            raise ValueError(f"{self} is too small: a side has at least {SMALLEST_SIDE} pixels")

    def __str__(self) -> str:
        width, size = str(self.body).split("-")
        return f"{self.framework}{size}/{width}"

    @classmethod
    def parse(cls, name: str, **choices: Any) -> DetectorSpec:
        """Read a name such as `ssd300/1.0`, `frcnn600/0.5` or `ssd240x320/0.25`.

        Args:
            name: framework, side in pixels, width.
            choices: what a name does not hold, as for `MobileNetSpec.parse`.

        Raises:
            ValueError: says what is wrong and how a name looks.

        >>> DetectorSpec.parse("frcnn600/1.0").body.height
        600
        """
        match = _NAME.fullmatch(name.strip())
        known = get_args(Framework)
        if match is None or match["framework"] not in known:
            raise ValueError(
                f"unknown detector {name!r}: a name is {', '.join(known)} with a side and a width, "
                "such as ssd300/1.0"
            )
        height = int(match["height"])
        size = height if match["across"] is None else (height, int(match["across"]))
        body = MobileNetSpec(check_width(match["width"]), size, **choices)
        return cls(match["framework"], body)  # type: ignore[arg-type]

    @property
    def height(self) -> int:
        """Input height in pixels."""
        return self.body.height

    @property
    def across(self) -> int:
        """Input width in pixels."""
        return self.body.across

    @property
    def input_channels(self) -> int:
        """3 for colour, 1 for grey."""
        return self.body.input_channels

    @property
    def activation(self) -> Activation:
        """Of the body and of the layers beyond it."""
        return self.body.activation

    def resized(self, height: int, across: int) -> DetectorSpec:
        """The same for images of another size."""
        return replace(self, body=self.body.resized(height, across))

    def to_dict(self) -> dict[str, Any]:
        """Every field, for `config.json`; `spec_from_dict` reads it back."""
        return {"framework": self.framework, **self.body.to_dict()}

    def channels(self, base: int) -> int:
        """Channels of a layer beyond the body that has `base` at width 1; at least 16.

        >>> DetectorSpec("ssd", MobileNetSpec(0.25, 300)).channels(128)
        32
        """
        return max(self.body.channels(base), _LEAST_CHANNELS)

    @property
    def padding(self) -> Padding:
        """Of the layers beyond the body; those of Keras' body would vanish."""
        return "torch" if self.body.padding == "torch" else "tensorflow"


@dataclass(frozen=True)
class Selection:
    """Which of a detector's boxes are told.

    Args:
        score: the least that a box may have; every class of a box has its own.
        overlap: of two boxes of one class that overlap by more than this (intersection over union), the one with the
            lower score goes.
        most: boxes in an image.
        candidates: so many of the best scores are looked at.
    """

    score: float = 0.01
    overlap: float = 0.6
    most: int = 100
    candidates: int = 1000


Spec = MobileNetSpec | DetectorSpec


def parse_spec(name: str, **choices: Any) -> Spec:
    """Read the name of a classifier such as `0.5-160`, or of a detector such as `ssd300/1.0`.

    Raises:
        ValueError: says what is wrong and how a name looks.

    >>> str(parse_spec("ssd300/0.5")), str(parse_spec("0.5-160"))
    ('ssd300/0.5', '0.5-160')
    """
    kind = DetectorSpec if "/" in name else MobileNetSpec
    return kind.parse(name, **choices)


def spec_from_dict(values: Mapping[str, Any]) -> Spec:
    """Rebuild a specification from `to_dict`.

    Raises:
        ValueError: a field is unknown, or its value is not allowed.

    >>> spec_from_dict(parse_spec("ssd300/0.5").to_dict()) == parse_spec("ssd300/0.5")
    True
    """
    if "framework" not in values:
        return MobileNetSpec.from_dict(values)
    body = {name: value for name, value in values.items() if name != "framework"}
    return DetectorSpec(values["framework"], MobileNetSpec.from_dict(body))


def model_layers(spec: Spec, num_classes: int | None) -> tuple[Layer, ...]:
    """Every convolution and linear layer of a classifier or a detector, in order; None leaves a classifier's last one out."""
    if isinstance(spec, DetectorSpec):
        return detector_layers(spec, num_classes or 0)
    return layers_of(spec, num_classes)


@dataclass(frozen=True, kw_only=True)
class Level:
    """A feature map on which boxes are looked for.

    Args:
        channels, size: what it has; its size is `(height, width)`.
        shapes: of the boxes that stand at each of its places, in their order: `(height, width)` in pixels of the
            network's input.
    """

    channels: int
    size: tuple[int, int]
    shapes: tuple[tuple[float, float], ...]

    @property
    def boxes(self) -> int:
        """How many boxes stand on it."""
        return len(self.shapes) * math.prod(self.size)


def levels_of(spec: DetectorSpec) -> tuple[Level, ...]:
    """The feature maps on which a detector looks for boxes, the largest first.

    >>> levels = levels_of(DetectorSpec.parse("ssd300/1.0"))
    >>> [level.size[0] for level in levels], sum(level.boxes for level in levels)
    ([19, 10, 5, 3, 2, 1], 1917)
    >>> [tuple(round(side) for side in shape) for shape in levels[0].shapes]
    [(30, 30), (42, 85), (85, 42)]
    """
    taps = {row.name: row for row in layers_of(spec.body, None)}
    eight, sixteen, thirty_two = (taps[f"block{block}.pointwise"] for block in TAPS)
    if spec.framework == "frcnn":
        return (_level(sixteen.out_channels, sixteen.out_size, _rpn_shapes()),)
    if spec.framework == "ssd":
        extras = [row for row in _extras(spec, thirty_two) if row.stride == 2]
        shapes = _ssd_shapes(min(spec.body.height, spec.body.across))
        return tuple(
            _level(row.out_channels, row.out_size, found)
            for row, found in zip((sixteen, thirty_two, *extras), shapes, strict=True)
        )
    sizes = [eight.out_size, sixteen.out_size, thirty_two.out_size]
    while len(sizes) < _PYRAMID_LEVELS:
        sizes.append(_halved(spec, sizes[-1]))
    channels = spec.channels(_PYRAMID_CHANNELS)
    return tuple(
        _level(channels, size, _pyramid_shapes(8 * 2**number)) for number, size in enumerate(sizes)
    )


def places_of_boxes(spec: DetectorSpec) -> Iterator[tuple[float, float, float, float]]:
    """Where a detector's boxes stand before it moves them, level by level, row by row: middle from the left and from the top, width and
    height, as shares of the image's sides.

    >>> next(places_of_boxes(DetectorSpec.parse("ssd320/1.0")))
    (0.025, 0.025, 0.1, 0.1)
    """
    for level in levels_of(spec):
        rows, columns = level.size
        for row, column, (height, width) in product(range(rows), range(columns), level.shapes):
            middle = (column + 0.5) / columns, (row + 0.5) / rows
            yield *middle, width / spec.across, height / spec.height


def _ssd_shapes(side: int) -> Iterator[list[tuple[float, float]]]:
    """Six scales from 0.2 to 0.95 of the shorter side; the first map has three smaller shapes."""
    scales = [side * (0.2 + 0.15 * number) for number in range(6)]
    yield [_shape(0.1 * side, 1.0), _shape(scales[0], 2.0), _shape(scales[0], 0.5)]
    for scale, following in pairwise([*scales[1:], float(side)]):
        shapes = [_shape(scale, aspect) for aspect in (1.0, 2.0, 0.5, 3.0, 1 / 3)]
        yield [*shapes, _shape(math.sqrt(scale * following), 1.0)]


def _pyramid_shapes(stride: int) -> list[tuple[float, float]]:
    """Two scales an octave, from four times the stride on."""
    return [
        _shape(4 * stride * 2 ** (half / 2), aspect)
        for half in range(2)
        for aspect in (1.0, 2.0, 0.5)
    ]


def _rpn_shapes() -> list[tuple[float, float]]:
    """Four scales around 256 pixels."""
    return [_shape(256 * scale, aspect) for scale in (0.25, 0.5, 1, 2) for aspect in (0.5, 1, 2)]


def _shape(scale: float, aspect: float) -> tuple[float, float]:
    """Height and width of a box with the area of a square of side `scale`; `aspect` is width over height."""
    return scale / math.sqrt(aspect), scale * math.sqrt(aspect)


def detector_layers(spec: DetectorSpec, num_classes: int = COCO_CLASSES) -> tuple[Layer, ...]:
    """Every convolution and linear layer of a detector, in order.

    Args:
        spec: which.
        num_classes: without the background, which is counted besides.

    >>> len(detector_layers(DetectorSpec.parse("ssd300/1.0")))
    47
    """
    if num_classes < 1:
        raise ValueError(f"a detector needs at least one class, not {num_classes}")
    return tuple(_LAYERS[spec.framework](spec, num_classes))


def _ssd(spec: DetectorSpec, num_classes: int) -> Iterator[Layer]:
    body = layers_of(spec.body, None)
    yield from body
    yield from _extras(spec, body[-1])
    for number, level in enumerate(levels_of(spec)):
        for head, outputs in _outputs(level, num_classes):
            yield _conv(f"level{number}.{head}", level.channels, outputs, level.size, bias=True)


def _outputs(level: Level, num_classes: int) -> tuple[tuple[str, int], tuple[str, int]]:
    shapes = len(level.shapes)
    return ("boxes", 4 * shapes), ("scores", (num_classes + 1) * shapes)


def _extras(spec: DetectorSpec, last: Layer) -> Iterator[Layer]:
    channels, size = last.out_channels, last.out_size
    for number, base in enumerate(_EXTRA_CHANNELS, start=2):
        narrow, wide = spec.channels(base // 2), spec.channels(base)
        yield _conv(f"level{number}.narrow", channels, narrow, size)
        yield _conv(
            f"level{number}.wide", narrow, wide, size, kernel=3, out_size=_halved(spec, size)
        )
        channels, size = wide, _halved(spec, size)


def _ssd_on_pyramid(spec: DetectorSpec, num_classes: int) -> Iterator[Layer]:
    body = {row.name: row for row in layers_of(spec.body, None)}
    yield from body.values()
    levels = levels_of(spec)
    channels = levels[0].channels
    for number, block in enumerate(TAPS):
        tap = body[f"block{block}.pointwise"]
        yield _conv(f"level{number}.narrow", tap.out_channels, channels, tap.out_size, bias=True)
        yield _conv(f"level{number}.smooth", channels, channels, tap.out_size, kernel=3, bias=True)
    for number, (before, level) in enumerate(pairwise(levels[len(TAPS) - 1 :]), start=len(TAPS)):
        yield _conv(
            f"level{number}.wide",
            channels,
            channels,
            before.size,
            kernel=3,
            out_size=level.size,
            bias=True,
        )
    for number, level in enumerate(levels):
        for head, outputs in _outputs(level, num_classes):
            name = f"level{number}.{head}"
            tower = [
                _conv(f"{name}{layer}", channels, channels, level.size, kernel=3)
                for layer in range(TOWER_LAYERS)
            ]
            last = _conv(name, channels, outputs, level.size, kernel=3, bias=True)
            # Weights are those of the first level; each level has batch norm of its own.
            yield from (replace(layer, shared=number > 0) for layer in (*tower, last))


def _faster_rcnn(spec: DetectorSpec, num_classes: int) -> Iterator[Layer]:
    body = layers_of(spec.body, None)
    names = [row.name for row in body]
    second = names.index(f"block{TAPS[1] + 1}.depthwise")
    yield from body[:second]
    (level,) = levels_of(spec)
    hidden, shapes = spec.channels(_RPN_CHANNELS), len(level.shapes)
    yield _conv("rpn.conv", level.channels, hidden, level.size, kernel=3, bias=True)
    # Two scores, nothing and something, as TensorFlow has them.
    yield _conv("rpn.scores", hidden, 2 * shapes, level.size, bias=True)
    yield _conv("rpn.boxes", hidden, 4 * shapes, level.size, bias=True)
    size = CROP
    for row in body[second:]:
        out_size = _halved(spec, size) if row.stride == 2 else size
        yield replace(row, in_size=size, out_size=out_size, repeats=PROPOSALS)
        size = out_size
    for head, outputs in (("scores", num_classes + 1), ("boxes", 4 * num_classes)):
        yield Layer(
            name=head,
            type="linear",
            in_channels=body[-1].out_channels,
            out_channels=outputs,
            bias=True,
            repeats=PROPOSALS,
        )


_LAYERS = {"ssd": _ssd, "ssdfpn": _ssd_on_pyramid, "frcnn": _faster_rcnn}


def _conv(
    name: str,
    in_channels: int,
    out_channels: int,
    size: tuple[int, int],
    *,
    kernel: int = 1,
    out_size: tuple[int, int] | None = None,
    bias: bool = False,
) -> Layer:
    """With batch norm unless it has a bias; of stride 2 where it has another size to put out."""
    return Layer(
        name=name,
        type="pointwise" if kernel == 1 else "conv",
        in_channels=in_channels,
        out_channels=out_channels,
        kernel=kernel,
        stride=1 if out_size is None else 2,
        in_size=size,
        out_size=out_size or size,
        bias=bias,
        batch_norm=not bias,
    )


def _halved(spec: DetectorSpec, size: tuple[int, int]) -> tuple[int, int]:
    height, width = (convolved_size(side, 2, spec.padding, first=False) for side in size)
    return height, width


def _level(channels: int, size: tuple[int, int], shapes: list[tuple[float, float]]) -> Level:
    return Level(channels=channels, size=size, shapes=tuple(shapes))
