"""What every table of whole models prints: an accuracy, mult-adds and parameters in millions."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from mobilenets.architecture import MobileNetSpec
from mobilenets.cost import PUBLISHED, Cost, cost
from mobilenets.reproduce.printed import Alternative, Figure, Misprint, Unit

BODY_ONLY = "body only, classifier left out"
FLOPS = "FLOPs instead of mult-adds"
WITHOUT_BATCH_NORM = "without batch norm"


class PrintedModel(NamedTuple):
    """One row of Tables 4 to 9: a member of the family, and its figures as printed."""

    label: str
    spec: MobileNetSpec
    top1: str
    mult_adds: str
    parameters: str


def imagenet_figures(row: PrintedModel, source: str) -> tuple[Figure, Figure, Figure]:
    """Accuracy, mult-adds and parameters of one row, with 1,000 classes."""
    whole, body = cost(row.spec), cost(row.spec, None)
    return (
        trained(row.label, "ImageNet top-1", row.top1, elsewhere(row.spec), source),
        Figure(
            row=row.label,
            column="mult-adds",
            printed=row.mult_adds,
            unit="M",
            computed=whole.mult_adds,
            counted="classifier included",
            alternatives=(
                Alternative(convention=BODY_ONLY, value=body.mult_adds),
                Alternative(convention=FLOPS, value=whole.flops),
            ),
            source=source,
        ),
        parameter_figure(row.label, row.parameters, whole, source),
    )


def parameter_figure(
    label: str, printed: str, counted: Cost, source: str, *, note: str = ""
) -> Figure:
    """Trainable parameters, batch norm included, as PyTorch counts; without it as a fallback."""
    return Figure(
        row=label,
        column="parameters",
        printed=printed,
        unit="M",
        computed=counted.parameters,
        counted="trainable, batch norm included",
        alternatives=(
            Alternative(convention=WITHOUT_BATCH_NORM, value=counted.parameters_without_batch_norm),
        ),
        note=note,
        source=source,
    )


def trained(
    label: str,
    column: str,
    printed: str,
    note: str,
    source: str,
    *,
    misprint: Misprint | None = None,
) -> Figure:
    """The result of a training run, which arithmetic cannot give."""
    return Figure(
        row=label,
        column=column,
        printed=printed,
        unit="%",
        computed=None,
        note=f"a training result; {note}",
        misprint=misprint,
        source=source,
    )


def not_counted(
    label: str,
    column: str,
    accuracy: str,
    mult_adds: str,
    parameters: str,
    source: str,
    *,
    unit: Unit = "M",
) -> tuple[Figure, Figure, Figure]:
    """The row of a network whose layers are not listed here; `unit` is that of its mult-adds."""
    unknown = Figure(
        row=label,
        column="mult-adds",
        printed=mult_adds,
        unit=unit,
        computed=None,
        note=f"{label}: its layers are not listed here",
        source=source,
    )
    return (
        trained(label, column, accuracy, "quoted by the paper", source),
        unknown,
        replace(unknown, column="parameters", printed=parameters, unit="M"),
    )


def elsewhere(spec: MobileNetSpec) -> str:
    """What TensorFlow-Slim published for the same model.

    >>> elsewhere(MobileNetSpec(1.0, 224))
    'TensorFlow-Slim published 70.7 (2017-06-14) and 70.9 (2018-02-22)'
    """
    for row in PUBLISHED:
        if row.spec == spec:
            return (
                f"TensorFlow-Slim published {row.slim_2017_top1} (2017-06-14) "
                f"and {row.slim_2018_top1} (2018-02-22)"
            )
    return "the paper is the only source kept here"
