"""Tables 10, 12 and 14: dogs, face attributes and face embeddings; their MobileNet rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from mobilenets.architecture import Layer, MobileNetSpec, layers_of
from mobilenets.cost import cost, count
from mobilenets.reproduce.model_figures import (
    BODY_ONLY,
    not_counted,
    parameter_figure,
    trained,
)
from mobilenets.reproduce.printed import Alternative, Figure, Misprint

TABLE_10 = "Howard et al. 2017, Table 10"
TABLE_12 = "Howard et al. 2017, Table 12"
TABLE_14 = "Howard et al. 2017, Table 14"
DOG_BREEDS = 120
FACE_EMBEDDING = 128

# Model, top-1, mult-adds, parameters.
_DOGS = (
    (MobileNetSpec(), "83.3", "569", "3.3"),
    (MobileNetSpec(0.75), "81.9", "325", "1.9"),
    (MobileNetSpec(1.0, 192), "81.9", "418", "3.3"),
    (MobileNetSpec(0.75, 192), "80.5", "239", "1.9"),
)
# Model, mean average precision, mult-adds, parameters.
_ATTRIBUTES = (
    (MobileNetSpec(), "88.7", "568", "3.2"),
    (MobileNetSpec(0.5), "88.1", "149", "0.8"),
    (MobileNetSpec(0.25), "87.2", "45", "0.2"),
    (MobileNetSpec(1.0, 128), "88.1", "185", "3.2"),
    (MobileNetSpec(0.5, 128), "87.7", "48", "0.8"),
    (MobileNetSpec(0.25, 128), "86.4", "15", "0.2"),
)
# Printed label, the model it must be, accuracy at 1e-4, mult-adds, parameters.
_FACES = (
    ("1.0 MobileNet-160", MobileNetSpec(1.0, 160), "79.4", "286", "4.9"),
    ("1.0 MobileNet-128", MobileNetSpec(1.0, 128), "78.3", "185", "5.5"),
    ("0.75 MobileNet-128", MobileNetSpec(0.75, 160), "75.2", "166", "3.4"),
    ("0.75 MobileNet-128", MobileNetSpec(0.75, 128), "72.5", "108", "3.8"),
)


def table_10() -> tuple[Figure, ...]:
    """Stanford Dogs, 120 classes."""
    figures: list[Figure] = []
    for spec, top1, mult_adds, parameters in _DOGS:
        dogs, imagenet = cost(spec, DOG_BREEDS), cost(spec)
        figures += (
            trained(
                _label(spec), "top-1", top1, "the paper is the only source kept here", TABLE_10
            ),
            Figure(
                row=_label(spec),
                column="mult-adds",
                printed=mult_adds,
                unit="M",
                computed=dogs.mult_adds,
                counted=f"with {DOG_BREEDS} classes",
                alternatives=(
                    Alternative(
                        convention="with ImageNet's 1,000 classes", value=imagenet.mult_adds
                    ),
                ),
                source=TABLE_10,
            ),
            parameter_figure(
                _label(spec), parameters, dogs, TABLE_10, note=f"with {DOG_BREEDS} classes"
            ),
        )
    return (*not_counted("Inception V3", "top-1", "84", "5000", "23.2", TABLE_10), *figures)


def table_12() -> tuple[Figure, ...]:
    """Face attributes; the number of attributes is not told, so the body alone is counted."""
    figures: list[Figure] = []
    for spec, precision, mult_adds, parameters in _ATTRIBUTES:
        body = cost(spec, None)
        wider_first = count(_first_layer_of(16, layers_of(spec, None)))
        figures += (
            trained(
                _label(spec), "mean AP", precision, "on data that was never published", TABLE_12
            ),
            Figure(
                row=_label(spec),
                column="mult-adds",
                printed=mult_adds,
                unit="M",
                computed=body.mult_adds,
                counted=BODY_ONLY,
                alternatives=(
                    Alternative(
                        convention="16 channels in the first layer, not 8",
                        value=wider_first.mult_adds,
                    ),
                ),
                source=TABLE_12,
            ),
            parameter_figure(_label(spec), parameters, body, TABLE_12, note=BODY_ONLY),
        )
    text = "Howard et al. 2017, section 4.5"
    return (
        *figures,
        *not_counted("Baseline", "mean AP", "86.9", "1600", "7.5", TABLE_12),
        Figure(
            row="text",
            column="parameters of the baseline",
            printed="75",
            unit="M",
            computed=7_500_000,
            counted="as the table prints it",
            misprint=Misprint(should_be="7.5", why="the table prints 7.5"),
            source=text,
        ),
        Figure(
            row="text",
            column="mult-adds of the baseline",
            printed="1",
            unit="%",
            computed=Fraction(100 * 15, 1600),
            counted="15 / 1600 as the table prints them",
            note="the row of 15 is the one with a mean AP below the baseline's",
            source=text,
        ),
    )


def table_14() -> tuple[Figure, ...]:
    """Face embeddings of 128 values, FaceNet's size."""
    figures: list[Figure] = []
    for label, spec, accuracy, mult_adds, parameters in _FACES:
        embedding = cost(spec, FACE_EMBEDDING)
        grey = cost(replace(spec, input_channels=1), FACE_EMBEDDING)
        figures += (
            Figure(
                row=label,
                column="model",
                printed=label,
                computed=_label(spec),
                counted="from its mult-adds",
                misprint=Misprint(
                    should_be="0.75 MobileNet-160",
                    why="the table has two rows of this name, and 166 M is the cost at 160 pixels",
                ),
                source=TABLE_14,
            ),
            trained(
                label,
                "accuracy at 1e-4",
                accuracy,
                "on data that was never published",
                TABLE_14,
            ),
            Figure(
                row=label,
                column="mult-adds",
                printed=mult_adds,
                unit="M",
                computed=embedding.mult_adds,
                counted=f"{spec} with an embedding of {FACE_EMBEDDING} values",
                alternatives=(
                    Alternative(convention=BODY_ONLY, value=cost(spec, None).mult_adds),
                    Alternative(convention="grey input", value=grey.mult_adds),
                ),
                source=TABLE_14,
            ),
            parameter_figure(
                label,
                parameters,
                embedding,
                TABLE_14,
                note="no plain head gives it: the printed figure grows as the input shrinks",
            ),
        )
    return (*not_counted("FaceNet", "accuracy at 1e-4", "83", "1600", "7.5", TABLE_14), *figures)


def _label(spec: MobileNetSpec) -> str:
    """The paper's way to write a name.

    >>> _label(MobileNetSpec(0.75, 192))
    '0.75 MobileNet-192'
    """
    return f"{spec.width} MobileNet-{spec.resolution}"


def _first_layer_of(channels: int, rows: tuple[Layer, ...]) -> Iterator[Layer]:
    """The same body with at least `channels` after its first layer, and nothing else changed."""
    first, depthwise, pointwise, *rest = rows
    wide = max(channels, first.out_channels)
    yield replace(first, out_channels=wide)
    yield replace(depthwise, in_channels=wide, out_channels=wide, groups=wide)
    yield replace(pointwise, in_channels=wide)
    yield from rest
