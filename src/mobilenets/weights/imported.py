"""Weights of another project as ours: convolutions in order, fitted to a member of the family.

Every file format is read into `ForeignWeights`: the convolutions in the order of the network, each with
the batch norm or the bias that follows it. `fit` finds the specification that they are of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from mobilenets.architecture.body import Padding, Variant
from mobilenets.architecture.detector import DetectorSpec, Spec
from mobilenets.architecture.layer_rows import Layer, layers_of
from mobilenets.architecture.preprocessing import ChannelOrder, Preprocessing
from mobilenets.architecture.spec import Activation, MobileNetSpec, Rounding

BACKGROUND = 1001
INSTALL = "pip install 'mobilenets[import]'"


# What of a network leaves no trace in the shapes of its weights.
TRACELESS = ("activation", "padding", "total_stride", "batch_norm_epsilon")


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Batch norm by channel; `scale` and `shift` are its learnt gamma and beta."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, kw_only=True)
class Said:
    """What someone says of weights, where their file can't tell; None where nothing is said.

    Args:
        resolution: input side in pixels.
        mean, std: in the unit of `pixel / 255`, one for each channel or one for all.
    """

    activation: Activation | None = None
    padding: Padding | None = None
    total_stride: int | None = None
    batch_norm_epsilon: float | None = None
    resolution: int | None = None
    channels: ChannelOrder | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def check(
        self, origin: str, found: ForeignWeights | Spec, sure: Iterable[str] = TRACELESS
    ) -> None:
        """Make sure that nothing was said against what is known.

        Raises:
            ValueError: names what was found and what was said.
        """
        found = found.body if isinstance(found, DetectorSpec) else found
        for name in TRACELESS:
            own, given = getattr(found, name), getattr(self, name)
            if name in sure and given not in (None, own):
                raise ValueError(f"{origin}: its {name.replace('_', ' ')} is {own}, not {given}")


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution and what follows it: a batch norm, or a bias where one has been folded in, or both.

    Args:
        name: in the file, for messages.
        weight: (out, in / groups, height, width); depthwise filters are (C, 1, 3, 3).
    """

    name: str
    weight: Tensor
    norm: Norm | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignWeights:
    """What a file holds, in its own terms.

    Args:
        origin: the file, for messages.
        convolutions: of the body, in the order of the network.
        classifier: weight (K, C) and bias (K,), where there is one.
        activation: None where the file can't tell.
        labels: class names, as many as the classifier has outputs; none where the file has none.
        strides: of each convolution, where the file has them.
        sure: what of `TRACELESS` the file or its project settles; the rest is the likeliest.
    """

    origin: str
    convolutions: Sequence[Convolution]
    classifier: tuple[Tensor, Tensor] | None
    activation: Activation | None
    padding: Padding
    batch_norm_epsilon: float
    resolution: int | tuple[int, int]
    preprocessing: Preprocessing
    labels: Sequence[str] = ()
    total_stride: int = 32
    strides: Sequence[int] = ()
    sure: frozenset[str] = frozenset()

    def as_said(self, said: Said) -> ForeignWeights:
        """With what someone says of them.

        Raises:
            ValueError: the file says otherwise.
        """
        said.check(self.origin, self, self.sure)
        given = {name: value for name, value in vars(said).items() if value is not None}
        preprocessing = self.preprocessing
        if said.channels is not None:
            preprocessing = replace(preprocessing, channels=said.channels)
        for name in ("mean", "std"):
            if name in given:
                values = given[name] * (preprocessing.channel_count if len(given[name]) == 1 else 1)
                preprocessing = replace(preprocessing, **{name: values})
        spec = {name: given[name] for name in TRACELESS if name in given}
        return replace(self, preprocessing=preprocessing, **spec)


@dataclass(frozen=True, kw_only=True)
class ImportedWeights:
    """Weights of ours: the specification, the state of its network, and how it is served.

    Args:
        state: for `MobileNet(spec, classes)`, without a classifier for its body; or for a detector.
        labels: class names by index, or none.
        sure: what of `TRACELESS` is known, and not the likeliest guess.
        licence: where it is known.
    """

    spec: Spec
    state: Mapping[str, Tensor]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    sure: frozenset[str] = frozenset(TRACELESS)
    licence: str = ""

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier; None without one."""
        return (
            self.state["classifier.weight"].shape[0] if "classifier.weight" in self.state else None
        )


def fit(foreign: ForeignWeights, *, keep_background: bool = False) -> ImportedWeights:
    """Find the member of the family that the convolutions are of, and name them as ours.

    The activation must be known by now. Of 1,001 outputs the first is TensorFlow's background, which is
    dropped: the softmax over the other 1,000 is what remains.

    Args:
        keep_background: keep all 1,001 outputs.

    Raises:
        ValueError: one sentence that says which layer is not the family's.
    """
    spec, layers = _member(foreign)
    state: dict[str, Tensor] = {}
    for layer, convolution in zip(layers, foreign.convolutions, strict=True):
        state |= unit_state(f"body.{layer.name}", convolution, spec.batch_norm_epsilon)
    labels = tuple(foreign.labels)
    if foreign.classifier is not None:
        weight_KC, bias_K = foreign.classifier
        if weight_KC.shape[1] != layers[-1].out_channels:
            raise ValueError(
                f"{foreign.origin}: the classifier takes {weight_KC.shape[1]} features, and the body "
                f"gives {layers[-1].out_channels}"
            )
        if len(weight_KC) == BACKGROUND and not keep_background:
            weight_KC, bias_K, labels = weight_KC[1:], bias_K[1:], labels[1:]
        if labels and len(labels) != len(weight_KC):
            raise ValueError(
                f"{foreign.origin}: {len(weight_KC):,} outputs but {len(labels):,} labels"
            )
        state |= {"classifier.weight": weight_KC, "classifier.bias": bias_K}
    state = {name: value.detach().clone().contiguous() for name, value in state.items()}
    return ImportedWeights(
        spec=spec,
        state=state,
        preprocessing=foreign.preprocessing,
        labels=labels,
        sure=foreign.sure,
    )


def _member(foreign: ForeignWeights) -> tuple[MobileNetSpec, tuple[Layer, ...]]:
    """The specification whose layers have these shapes, nearest names first."""
    shapes = [tuple(convolution.weight.shape) for convolution in foreign.convolutions]
    if not shapes:
        raise ValueError(f"{foreign.origin}: it has no convolutions")
    best: tuple[int, str] = (-1, "")
    for spec in _candidates(foreign, shapes):
        layers = layers_of(spec, None)
        expected = [layer_shape(layer) for layer in layers]
        agree = sum(1 for a, b in zip(shapes, expected, strict=False) if a == b)
        if shapes == expected:
            _check_strides(foreign, spec, layers)
            return spec, layers
        first = next(
            (i for i, (a, b) in enumerate(zip(shapes, expected, strict=False)) if a != b), None
        )
        if first is None:
            reason = f"it has {len(shapes)} convolutions where {spec} has {len(expected)}"
        else:
            reason = (
                f"{foreign.convolutions[first].name} is {shapes[first]} where {spec} has "
                f"{expected[first]} ({layers[first].name})"
            )
        if agree > best[0]:
            best = (agree, reason)
    raise ValueError(f"{foreign.origin}: not a MobileNet V1, {best[1]}")


def _check_strides(foreign: ForeignWeights, spec: MobileNetSpec, layers: Sequence[Layer]) -> None:
    if not foreign.strides:
        return
    for convolution, stride, layer in zip(
        foreign.convolutions, foreign.strides, layers, strict=True
    ):
        if stride != layer.stride:
            raise ValueError(
                f"{foreign.origin}: {convolution.name} has stride {stride} where {spec} has {layer.stride}"
            )


def _candidates(
    foreign: ForeignWeights, shapes: Sequence[tuple[int, ...]]
) -> Iterator[MobileNetSpec]:
    assert foreign.activation is not None
    last = shapes[-1][0]
    # A width of 0.35 gives 358 channels, and 358 / 1024 is another number: try what people write first.
    widths = dict.fromkeys(
        width
        for width in (
            round(last / 1024, 2),
            round(last / 1024, 3),
            *(step / 100 for step in range(math.floor(last / 10.25), math.ceil(last / 10.23) + 1)),
            last / 1024,
        )
        if width > 0
    )
    for variant in get_args(Variant):
        for width in widths:
            for rounding in get_args(Rounding):
                yield MobileNetSpec(
                    width,
                    foreign.resolution,
                    rounding=rounding,
                    variant=variant,
                    total_stride=foreign.total_stride,
                    activation=foreign.activation,
                    padding=foreign.padding,
                    batch_norm_epsilon=foreign.batch_norm_epsilon,
                    input_channels=shapes[0][1],
                )


def layer_shape(layer: Layer) -> tuple[int, int, int, int]:
    """Of a convolution's weights: out, in for each group, height, width."""
    kernel = layer.kernel
    assert isinstance(kernel, int)
    return (layer.out_channels, layer.in_channels // layer.groups, kernel, kernel)


def unit_state(name: str, convolution: Convolution, epsilon: float) -> dict[str, Tensor]:
    """The state of a `ConvUnit` of that name; a bias alone becomes a batch norm that only adds it."""
    weight = convolution.weight.float()
    channels = len(weight)
    norm = convolution.norm
    if norm is None:
        # Folded: a batch norm that multiplies by 1 and adds the bias.
        bias = torch.zeros(channels) if convolution.bias is None else convolution.bias
        norm = Norm(
            scale=torch.ones(channels),
            shift=bias,
            mean=torch.zeros(channels),
            variance=torch.full((channels,), 1 - epsilon),
        )
    elif convolution.bias is not None:
        if convolution.bias.shape != (channels,):
            raise ValueError(
                f"{convolution.name}: its bias has shape {tuple(convolution.bias.shape)} for {channels} channels"
            )
        # Batch norm takes the mean away: of a bias before it is left what the mean lacks.
        norm = replace(norm, mean=norm.mean - convolution.bias)
    values = {
        "weight": norm.scale,
        "bias": norm.shift,
        "running_mean": norm.mean,
        "running_var": norm.variance,
    }
    for part, value in values.items():
        if value.shape != (channels,):
            raise ValueError(
                f"{convolution.name}: its {part} has shape {tuple(value.shape)} for {channels} channels"
            )
    return {
        f"{name}.conv.weight": weight,
        **{f"{name}.norm.{part}": value.float() for part, value in values.items()},
        f"{name}.norm.num_batches_tracked": torch.tensor(0),
    }
