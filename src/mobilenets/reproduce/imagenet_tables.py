"""Tables 4 to 9: the family and its neighbours on ImageNet, and what the text claims of them."""

from __future__ import annotations

from fractions import Fraction

from mobilenets.architecture import MobileNetSpec
from mobilenets.cost import cost, count
from mobilenets.reproduce.model_figures import (
    FLOPS,
    PrintedModel,
    imagenet_figures,
    trained,
)
from mobilenets.reproduce.neighbours import alexnet, googlenet, squeezenet, vgg16
from mobilenets.reproduce.printed import Alternative, Figure, Value, show

_FULL = PrintedModel(
    label="1.0 MobileNet-224",
    spec=MobileNetSpec(),
    top1="70.6",
    mult_adds="569",
    parameters="4.2",
)
_SMALL = PrintedModel(
    label="0.50 MobileNet-160",
    spec=MobileNetSpec(0.5, 160),
    top1="60.2",
    mult_adds="76",
    parameters="1.32",
)
_TABLE_4 = (
    PrintedModel(
        label="Conv MobileNet",
        spec=MobileNetSpec(variant="fullconv"),
        top1="71.7",
        mult_adds="4866",
        parameters="29.3",
    ),
    PrintedModel(
        label="MobileNet", spec=MobileNetSpec(), top1="70.6", mult_adds="569", parameters="4.2"
    ),
)
_TABLE_5 = (
    PrintedModel(
        label="0.75 MobileNet",
        spec=MobileNetSpec(0.75),
        top1="68.4",
        mult_adds="325",
        parameters="2.6",
    ),
    PrintedModel(
        label="Shallow MobileNet",
        spec=MobileNetSpec(variant="shallow"),
        top1="65.3",
        mult_adds="307",
        parameters="2.9",
    ),
)
_TABLE_6 = (
    _FULL,
    PrintedModel(
        label="0.75 MobileNet-224",
        spec=MobileNetSpec(0.75),
        top1="68.4",
        mult_adds="325",
        parameters="2.6",
    ),
    PrintedModel(
        label="0.5 MobileNet-224",
        spec=MobileNetSpec(0.5),
        top1="63.7",
        mult_adds="149",
        parameters="1.3",
    ),
    PrintedModel(
        label="0.25 MobileNet-224",
        spec=MobileNetSpec(0.25),
        top1="50.6",
        mult_adds="41",
        parameters="0.5",
    ),
)
_TABLE_7 = (
    _FULL,
    PrintedModel(
        label="1.0 MobileNet-192",
        spec=MobileNetSpec(1.0, 192),
        top1="69.1",
        mult_adds="418",
        parameters="4.2",
    ),
    PrintedModel(
        label="1.0 MobileNet-160",
        spec=MobileNetSpec(1.0, 160),
        top1="67.2",
        mult_adds="290",
        parameters="4.2",
    ),
    PrintedModel(
        label="1.0 MobileNet-128",
        spec=MobileNetSpec(1.0, 128),
        top1="64.4",
        mult_adds="186",
        parameters="4.2",
    ),
)


def table_4() -> tuple[Figure, ...]:
    """Separable against full convolutions."""
    full, separable = _TABLE_4
    return (
        *_models(_TABLE_4, 4),
        _gain("accuracy lost by separable layers", "1", full.top1, separable.top1, "4"),
    )


def table_5() -> tuple[Figure, ...]:
    """Thinner against shallower."""
    thin, shallow = _TABLE_5
    return (
        *_models(_TABLE_5, 5),
        _gain("thin better than shallow", "3", thin.top1, shallow.top1, "4.1"),
    )


def table_6() -> tuple[Figure, ...]:
    """The width multiplier."""
    return _models(_TABLE_6, 6)


def table_7() -> tuple[Figure, ...]:
    """The input's resolution."""
    return _models(_TABLE_7, 7)


def table_8() -> tuple[Figure, ...]:
    """The full model beside GoogLeNet and VGG-16, and the text's claims."""
    source = _table(8)
    mobile, inception, vgg = cost(_FULL.spec), count(googlenet()), count(vgg16())
    vgg_convolutions = count(row for row in vgg16() if row.type != "linear")
    return (
        *imagenet_figures(_FULL, source),
        trained("GoogleNet", "ImageNet top-1", "69.8", "quoted by the paper", source),
        Figure(
            row="GoogleNet",
            column="mult-adds",
            printed="1550",
            unit="M",
            step="10",
            computed=inception.mult_adds,
            counted="all layers, auxiliary heads left out",
            alternatives=(Alternative(convention=FLOPS, value=inception.flops),),
            note="no plain count of GoogLeNet gives 1550 M",
            source=source,
        ),
        Figure(
            row="GoogleNet",
            column="parameters",
            printed="6.8",
            unit="M",
            computed=inception.weights,
            counted="weights alone, auxiliary heads left out",
            alternatives=(Alternative(convention="with biases", value=inception.parameters),),
            note="no plain count gives 6.8 M; GoogLeNet's own Table 1 may have been added up",
            source=source,
        ),
        trained("VGG 16", "ImageNet top-1", "71.5", "quoted by the paper", source),
        Figure(
            row="VGG 16",
            column="mult-adds",
            printed="15300",
            unit="M",
            step="100",
            computed=vgg.mult_adds,
            counted="all layers",
            alternatives=(
                Alternative(
                    convention="convolutions only, linear layers left out",
                    value=vgg_convolutions.mult_adds,
                ),
            ),
            source=source,
        ),
        Figure(
            row="VGG 16",
            column="parameters",
            printed="138",
            unit="M",
            computed=vgg.parameters,
            counted="weights and biases",
            source=source,
        ),
        _advantage(
            "smaller than VGG 16", "32", ("138", vgg.parameters), ("4.2", mobile.parameters), "4.2"
        ),
        _advantage(
            "less compute than VGG 16",
            "27",
            ("15300", vgg.mult_adds),
            ("569", mobile.mult_adds),
            "4.2",
        ),
        _advantage(
            "less compute than GoogleNet",
            "2.5",
            ("1550", inception.mult_adds),
            ("569", mobile.mult_adds),
            "4.2",
            # The text says "more than 2.5": a bound in halves.
            step="0.5",
        ),
    )


def table_9() -> tuple[Figure, ...]:
    """The half-width model at 160 pixels beside SqueezeNet and AlexNet, and the text's claims."""
    source = _table(9)
    mobile, squeeze, alex = cost(_SMALL.spec), count(squeezenet()), count(alexnet())
    squeeze_released = count(squeezenet(last_padding=1))
    return (
        *imagenet_figures(_SMALL, source),
        trained("Squeezenet", "ImageNet top-1", "57.5", "quoted by the paper", source),
        Figure(
            row="Squeezenet",
            column="mult-adds",
            printed="1700",
            unit="M",
            step="100",
            computed=squeeze.mult_adds,
            counted="all layers, 227 pixels",
            alternatives=(
                Alternative(
                    convention=f"{FLOPS}, conv10 padded as in the Caffe release",
                    value=squeeze_released.flops,
                ),
            ),
            source=source,
        ),
        Figure(
            row="Squeezenet",
            column="parameters",
            printed="1.25",
            unit="M",
            computed=squeeze.parameters,
            counted="weights and biases",
            source=source,
        ),
        trained("AlexNet", "ImageNet top-1", "57.2", "quoted by the paper", source),
        Figure(
            row="AlexNet",
            column="mult-adds",
            printed="720",
            unit="M",
            step="10",
            computed=alex.mult_adds,
            counted="all layers, convolutions in two groups, 227 pixels",
            alternatives=(
                Alternative(convention="without groups", value=count(alexnet(groups=1)).mult_adds),
            ),
            source=source,
        ),
        Figure(
            row="AlexNet",
            column="parameters",
            printed="60",
            unit="M",
            computed=alex.parameters,
            counted="weights and biases",
            source=source,
        ),
        _gain("better than AlexNet", "4", "60.2", "57.2", "4.2"),
        _advantage(
            "smaller than AlexNet",
            "45",
            ("60", alex.parameters),
            ("1.32", mobile.parameters),
            "4.2",
        ),
        _advantage(
            "less compute than AlexNet",
            "9.4",
            ("720", alex.mult_adds),
            ("76", mobile.mult_adds),
            "4.2",
        ),
        _gain("better than Squeezenet", "4", "60.2", "57.5", "4.2"),
        _advantage(
            "less compute than Squeezenet",
            "22",
            ("1700", squeeze_released.mult_adds),
            ("76", mobile.mult_adds),
            "4.2",
            otherwise=f"{FLOPS} of Squeezenet",
        ),
    )


def _models(rows: tuple[PrintedModel, ...], number: int) -> tuple[Figure, ...]:
    return tuple(figure for row in rows for figure in imagenet_figures(row, _table(number)))


def _table(number: int) -> str:
    return f"Howard et al. 2017, Table {number}"


def _gain(what: str, printed: str, better: str, worse: str, section: str) -> Figure:
    """A claim about accuracy, held against the accuracies that the table prints."""
    return Figure(
        row="text",
        column=what,
        printed=printed,
        unit="points",
        computed=Fraction(better) - Fraction(worse),
        counted=f"{better} - {worse} as the table prints them",
        source=f"Howard et al. 2017, section {section}",
    )


def _advantage(
    what: str,
    printed: str,
    more: tuple[str, int],
    fewer: tuple[str, int],
    section: str,
    *,
    step: str | None = None,
    otherwise: str = "",
) -> Figure:
    """A claim of "N times less", from the table's two figures and from the two exact counts.

    The text divides what the table prints. That stands where the exact counts give at least as
    much; where they give less, the table's figures are not of one kind, and the counts decide.
    """
    exact = Fraction(more[1], fewer[1])
    quotient = Fraction(more[0]) / Fraction(fewer[0])
    as_printed = f"{more[0]} / {fewer[0]} as the table prints them"
    computed: Value = quotient
    alternatives: tuple[Alternative, ...] = ()
    counted = f"{as_printed}; the exact counts give {show(exact)}"
    if exact < Fraction(printed):
        computed, counted = exact, "exact mult-adds"
        alternatives = (Alternative(convention=f"{otherwise}, {as_printed}", value=quotient),)
    return Figure(
        row="text",
        column=what,
        printed=printed,
        unit="times",
        step=step,
        computed=computed,
        counted=counted,
        alternatives=alternatives,
        source=f"Howard et al. 2017, section {section}",
    )
