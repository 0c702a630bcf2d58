"""Tables 1 to 3: the body row by row, cost by layer type, and one layer made cheaper."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from mobilenets.architecture import Layer, MobileNetSpec, layers_of
from mobilenets.architecture.layer_rows import LayerType
from mobilenets.cost import cost, count
from mobilenets.reproduce.printed import Figure, Misprint

TABLE_1 = "Howard et al. 2017, Table 1"
TABLE_2 = "Howard et al. 2017, Table 2"
TABLE_3 = "Howard et al. 2017, Table 3"


class BodyText(NamedTuple):
    """One row of Table 1 as text."""

    kind: str
    shape: str
    size: str


# As printed; the brace around the five equal blocks is written as a prefix of both rows.
_BODY_PRINTED = (
    BodyText("Conv / s2", "3x3x3x32", "224x224x3"),
    BodyText("Conv dw / s1", "3x3x32 dw", "112x112x32"),
    BodyText("Conv / s1", "1x1x32x64", "112x112x32"),
    BodyText("Conv dw / s2", "3x3x64 dw", "112x112x64"),
    BodyText("Conv / s1", "1x1x64x128", "56x56x64"),
    BodyText("Conv dw / s1", "3x3x128 dw", "56x56x128"),
    BodyText("Conv / s1", "1x1x128x128", "56x56x128"),
    BodyText("Conv dw / s2", "3x3x128 dw", "56x56x128"),
    BodyText("Conv / s1", "1x1x128x256", "28x28x128"),
    BodyText("Conv dw / s1", "3x3x256 dw", "28x28x256"),
    BodyText("Conv / s1", "1x1x256x256", "28x28x256"),
    BodyText("Conv dw / s2", "3x3x256 dw", "28x28x256"),
    BodyText("Conv / s1", "1x1x256x512", "14x14x256"),
    BodyText("5x Conv dw / s1", "3x3x512 dw", "14x14x512"),
    BodyText("5x Conv / s1", "1x1x512x512", "14x14x512"),
    BodyText("Conv dw / s2", "3x3x512 dw", "14x14x512"),
    BodyText("Conv / s1", "1x1x512x1024", "7x7x512"),
    BodyText("Conv dw / s2", "3x3x1024 dw", "7x7x1024"),
    BodyText("Conv / s1", "1x1x1024x1024", "7x7x1024"),
    BodyText("Avg Pool / s1", "Pool 7x7", "7x7x1024"),
    BodyText("FC / s1", "1024x1000", "1x1x1024"),
    BodyText("Softmax / s1", "Classifier", "1x1x1000"),
)
# Row 18, the last depthwise convolution.
_BODY_MISPRINTS = {
    18: Misprint(
        should_be="Conv dw / s1",
        why="the next row's input is still 7x7 (tensorflow/models#1997)",
    )
}

# Label, layer type, share of mult-adds, share of parameters.
_BY_TYPE: tuple[tuple[str, LayerType, str, str], ...] = (
    ("Conv 1x1", "pointwise", "94.86", "74.59"),
    ("Conv DW 3x3", "depthwise", "3.06", "1.06"),
    ("Conv 3x3", "conv", "1.19", "0.02"),
    ("Fully Connected", "linear", "0.18", "24.33"),
)

# Label, the model whose block 7 is that layer, mult-adds and parameters in millions.
_ONE_LAYER = (
    ("Convolution", MobileNetSpec(variant="fullconv"), "462", "2.36"),
    ("Depthwise Separable Conv", MobileNetSpec(), "52.3", "0.27"),
    ("α = 0.75", MobileNetSpec(0.75), "29.6", "0.15"),
    ("ρ = 0.714", MobileNetSpec(0.75, 160), "15.1", "0.15"),
)


def body_text(spec: MobileNetSpec, num_classes: int = 1000) -> tuple[BodyText, ...]:
    """Table 1 written out for any square separable member of the family.

    Neighbouring equal blocks become one pair of rows with their number in front.

    >>> body_text(MobileNetSpec())[13]
    BodyText(kind='5x Conv dw / s1', shape='3x3x512 dw', size='14x14x512')
    """
    return tuple(_body_text(spec, num_classes))


def _body_text(spec: MobileNetSpec, num_classes: int) -> Iterator[BodyText]:
    first, *rest, classifier = layers_of(spec, num_classes)
    yield _conv_text(first)
    pairs = [(_conv_text(a), _conv_text(b)) for a, b in zip(rest[::2], rest[1::2], strict=True)]
    for position, pair in enumerate(pairs):
        if position and pair == pairs[position - 1]:
            continue
        times = next(
            (n for n, other in enumerate(pairs[position:]) if other != pair), len(pairs) - position
        )
        prefix = f"{times}x " if times > 1 else ""
        yield from (row._replace(kind=prefix + row.kind) for row in pair)
    features = classifier.in_channels
    height, across = spec.final_size
    yield BodyText("Avg Pool / s1", f"Pool {height}x{across}", f"{height}x{across}x{features}")
    yield BodyText(
        f"FC / s{classifier.stride}", f"{features}x{classifier.out_channels}", f"1x1x{features}"
    )
    yield BodyText("Softmax / s1", "Classifier", f"1x1x{classifier.out_channels}")


def _conv_text(layer: Layer) -> BodyText:
    window = f"{layer.kernel}x{layer.kernel}x{layer.in_channels}"
    size = f"{layer.in_size[0]}x{layer.in_size[1]}x{layer.in_channels}"
    if layer.type == "depthwise":
        return BodyText(f"Conv dw / s{layer.stride}", f"{window} dw", size)
    return BodyText(f"Conv / s{layer.stride}", f"{window}x{layer.out_channels}", size)


def table_1() -> tuple[Figure, ...]:
    """Every row's type and stride, filter and input, against the body that is built."""
    computed = body_text(MobileNetSpec())
    figures = [
        Figure(
            row=f"row {number}",
            column=column,
            printed=getattr(printed, field),
            computed=getattr(exact, field),
            counted="as built",
            misprint=_BODY_MISPRINTS.get(number) if field == "kind" else None,
            source=TABLE_1,
        )
        for number, (printed, exact) in enumerate(
            zip(_BODY_PRINTED, computed, strict=True), start=1
        )
        for column, field in (
            ("type / stride", "kind"),
            ("filter shape", "shape"),
            ("input size", "size"),
        )
    ]
    depth = Figure(
        row="text",
        column="layers",
        printed="28",
        computed=len(layers_of(MobileNetSpec())),
        counted="depthwise and pointwise counted as two, the classifier as one",
        source="Howard et al. 2017, section 3.2",
    )
    return (*figures, depth)


def table_2() -> tuple[Figure, ...]:
    """Each layer type's share of mult-adds and of parameters, in percent."""
    whole = cost(MobileNetSpec())
    by_type = whole.by_type()
    figures: list[Figure] = []
    for label, kind, mult_adds, parameters in _BY_TYPE:
        part = by_type[kind]
        figures += (
            Figure(
                row=label,
                column="mult-adds",
                printed=mult_adds,
                unit="%",
                computed=Fraction(100 * part.mult_adds, whole.mult_adds),
                counted=f"{part.mult_adds:,} of {whole.mult_adds:,}",
                misprint=Misprint(
                    should_be="1.91",
                    why="two digits changed places, and the printed column adds up to 99.29",
                )
                if kind == "conv"
                else None,
                source=TABLE_2,
            ),
            Figure(
                row=label,
                column="parameters",
                printed=parameters,
                unit="%",
                computed=Fraction(100 * part.weights, whole.weights),
                counted=f"{part.weights:,} of {whole.weights:,}, weights alone",
                source=TABLE_2,
            ),
        )
    pointwise = by_type["pointwise"]
    text = "Howard et al. 2017, section 3.2"
    return (
        *figures,
        Figure(
            row="text",
            column="time in 1x1 convolutions",
            printed="95",
            unit="%",
            computed=Fraction(100 * pointwise.mult_adds, whole.mult_adds),
            counted="the share of mult-adds; time was not measured here",
            source=text,
        ),
        Figure(
            row="text",
            column="parameters in 1x1 convolutions",
            printed="75",
            unit="%",
            computed=Fraction(100 * pointwise.weights, whole.weights),
            counted="weights alone",
            source=text,
        ),
    )


def table_3() -> tuple[Figure, ...]:
    """One 3x3 layer of 512 channels at 14 pixels: full, separable, thinner, then smaller."""
    figures: list[Figure] = []
    for label, spec, mult_adds, parameters in _ONE_LAYER:
        block = count(
            layer
            for layer in layers_of(spec)
            if layer.name in ("conv7", "block7.depthwise", "block7.pointwise")
        )
        side = block.layers[0].layer.in_size[0]
        channels = block.layers[0].layer.in_channels
        where = f"{channels} channels, {side}x{side} pixels"
        figures += (
            Figure(
                row=label,
                column="mult-adds",
                printed=mult_adds,
                unit="M",
                computed=block.mult_adds,
                counted=where,
                source=TABLE_3,
            ),
            Figure(
                row=label,
                column="parameters",
                printed=parameters,
                unit="M",
                computed=block.weights,
                counted=f"{where}, weights alone",
                source=TABLE_3,
            ),
        )
    return tuple(figures)
