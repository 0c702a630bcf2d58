"""SSD weights of another project as ours: the body fitted to the family, extra layers and heads behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mobilenets.architecture.detector import (
    BOX_SCALES,
    TAPS,
    DetectorSpec,
    detector_layers,
    levels_of,
    places_of_boxes,
)
from mobilenets.architecture.layer_rows import Layer
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.weights.imported import (
    Convolution,
    ForeignWeights,
    ImportedWeights,
    Said,
    fit,
    layer_shape,
    unit_state,
)

_BODY = 27
# What a class is called that the model has an output for and no name.
_NAMELESS = "???"
# TensorFlow moves boxes by (top, left, height, width), ours go by (left, top, width, height).
_ORDER = [1, 0, 3, 2]
# As a share of the image: half a step of 8 bits, and some.
_NEAR = 4e-3


@dataclass(frozen=True, kw_only=True)
class ForeignDetector:
    """What a file holds, in its own terms.

    Args:
        weights: of the body and, behind it in one chain, the extra layers.
        heads: each with the place in the chain of the convolution that it looks at.
        anchors: (A, 4), each (middle from the top, from the left, height, width) as shares of the image.
        settings: of TensorFlow's detection post-process.
        labels: class names, the background's first; none where the file has none.
    """

    weights: ForeignWeights
    heads: Sequence[tuple[Convolution, int]]
    anchors: Tensor
    settings: Mapping[str, Any]
    labels: Sequence[str]

    def as_said(self, said: Said) -> ForeignDetector:
        """With what someone says of them, as `ForeignWeights.as_said`."""
        return replace(self, weights=self.weights.as_said(said))


def fit_detector(foreign: ForeignDetector) -> ImportedWeights:
    """Find the detector that the weights are of, and name them as ours.

    Outputs for classes without a name, of which COCO's numbering has ten, are left out.

    Raises:
        ValueError: one sentence that says what is not SSD300's.
    """
    origin = foreign.weights.origin
    for name, value in BOX_SCALES.items():
        if abs(float(foreign.settings.get(name, 0)) - value) > 1e-3:
            raise ValueError(
                f"{origin}: its boxes are moved by a {name} of {foreign.settings.get(name)}, not {value:g}"
            )
    whole = foreign.weights
    strides = whole.strides[:_BODY]
    body = fit(
        replace(
            whole,
            convolutions=whole.convolutions[:_BODY],
            strides=strides,
            total_stride=math.prod(strides),
        )
    )
    assert isinstance(body.spec, MobileNetSpec)
    spec = DetectorSpec("ssd", body.spec)
    outputs = int(foreign.settings["num_classes"]) + 1
    names = list(foreign.labels) or [_NAMELESS, *(f"class {n}" for n in range(1, outputs))]
    if len(names) != outputs:
        raise ValueError(f"{origin}: {outputs - 1} classes but {len(names) - 1} labels")
    _check_boxes(foreign, spec)
    # The first is the background, whatever it is called.
    kept = [number for number in range(1, outputs) if names[number] != _NAMELESS]
    state = dict(body.state)
    for name, convolution in _extras(whole, spec):
        state |= unit_state(name, convolution, spec.body.batch_norm_epsilon)
    for name, weight, bias in _heads(foreign, spec, outputs, [0, *kept]):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return ImportedWeights(
        spec=spec,
        state={name: value.detach().clone().contiguous() for name, value in state.items()},
        preprocessing=replace(whole.preprocessing, resize="squash", crop_fraction=1.0),
        labels=tuple(names[number] for number in kept),
        sure=whole.sure,
    )


def _extras(whole: ForeignWeights, spec: DetectorSpec) -> Iterator[tuple[str, Convolution]]:
    rows = [row for row in detector_layers(spec) if row.name.endswith((".narrow", ".wide"))]
    found = whole.convolutions[_BODY:]
    if len(found) != len(rows):
        raise ValueError(
            f"{whole.origin}: it has {len(found)} layers beyond the body, not {len(rows)}"
        )
    for number, (row, convolution) in enumerate(zip(rows, found, strict=True)):
        _check_shape(convolution, row, whole.origin)
        yield f"extras.{number // 2}.{number % 2}", convolution


def _heads(
    foreign: ForeignDetector, spec: DetectorSpec, outputs: int, kept: list[int]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names, weights and biases of the heads, values of a box in our order."""
    origin, rows = (
        foreign.weights.origin,
        {row.name: row for row in detector_layers(spec, outputs - 1)},
    )
    count = len(levels_of(spec))
    # Where the maps come from: block 11, block 13, every second extra layer.
    ends = [2 * TAPS[1], 2 * TAPS[2], *range(_BODY + 1, len(foreign.weights.convolutions), 2)]
    named: dict[str, Convolution] = {}
    for convolution, place in foreign.heads:
        level = ends.index(place) if place in ends else count
        for part in ("boxes", "scores"):
            row = rows.get(f"level{level}.{part}")
            if row is not None and tuple(convolution.weight.shape) == layer_shape(row):
                named[row.name] = convolution
    for level in range(count):
        for part, values, order in (("boxes", 4, _ORDER), ("scores", outputs, kept)):
            if f"level{level}.{part}" not in named:
                raise ValueError(
                    f"{origin}: it has no {part} for map {level + 1} of {count} that fit {spec}"
                )
            convolution = named[f"level{level}.{part}"]
            weight, bias = convolution.weight, convolution.bias
            assert bias is not None
            of_boxes = weight.view(-1, values, *weight.shape[1:])[:, order].flatten(0, 1)
            name = f"{'box' if part == 'boxes' else 'score'}_heads.{level}"
            yield name, of_boxes, bias.view(-1, values)[:, order].flatten()


def _check_boxes(foreign: ForeignDetector, spec: DetectorSpec) -> None:
    """Make sure that the boxes stand where ours do, to half a step of integers in which a file may keep them."""
    ours = torch.tensor(list(places_of_boxes(spec)))[:, _ORDER]
    if ours.shape != foreign.anchors.shape or (ours - foreign.anchors).abs().max() > _NEAR:
        raise ValueError(
            f"{foreign.weights.origin}: its boxes do not stand where those of {spec} do"
        )


def _check_shape(convolution: Convolution, row: Layer, origin: str) -> None:
    if tuple(convolution.weight.shape) != layer_shape(row):
        raise ValueError(
            f"{origin}: {convolution.name} is {tuple(convolution.weight.shape)} where ours is "
            f"{layer_shape(row)} ({row.name})"
        )
