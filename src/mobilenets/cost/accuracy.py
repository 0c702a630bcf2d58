"""ImageNet accuracy between the 16 published models, from a curve fitted through them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from mobilenets.architecture.spec import (
    PUBLISHED_RESOLUTIONS,
    PUBLISHED_WIDTHS,
    MobileNetSpec,
)
from mobilenets.cost.published import PUBLISHED


@dataclass(frozen=True)
class AccuracyFit:
    """`top-1 = a + b w + c r + d w^2 + e r^2 + f w r`, w and r the logarithms of width and side.

    `residual` is the root mean square distance to the 16 published figures and `worst` the
    largest, both in percentage points.
    """

    coefficients: tuple[float, ...]
    residual: float
    worst: float

    def top1(self, spec: MobileNetSpec) -> float:
        """Interpolated top-1 in percent, for 1,000 ImageNet classes.

        Raises:
            ValueError: outside the published widths (0.25 to 1.0) and sides (128 to 224), or
                another variant, total stride or shape: a curve says nothing there.
        """
        if not _covered(spec):
            raise ValueError(
                f"no accuracy can be interpolated for {spec}: the published models are square, "
                "separable, of width 0.25 to 1.0 and of 128 to 224 pixels"
            )
        return _dot(self.coefficients, _terms(spec.width, spec.height))


@cache
def fit_accuracy(*, int8: bool = False) -> AccuracyFit:
    """Least squares through the 2018 figures, float or quantised.

    >>> round(fit_accuracy().top1(MobileNetSpec(0.6, 192)), 1)
    64.4
    """
    terms = [_terms(row.width, row.resolution) for row in PUBLISHED]
    top1 = [row.top1(int8=int8) for row in PUBLISHED]
    columns = list(zip(*terms, strict=True))
    coefficients = _solve(
        [[_dot(a, b) for b in columns] for a in columns],
        [_dot(a, top1) for a in columns],
    )
    errors = [_dot(coefficients, row) - value for row, value in zip(terms, top1, strict=True)]
    return AccuracyFit(
        coefficients=tuple(coefficients),
        residual=math.sqrt(_dot(errors, errors) / len(errors)),
        worst=max(map(abs, errors)),
    )


def _dot(a: Iterable[float], b: Iterable[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with pivoting: six equations do not earn numpy's start-up time."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(len(rows)):
        pivot = max(range(column, len(rows)), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for other in range(len(rows)):
            if other != column:
                factor = rows[other][column]
                rows[other] = [
                    a - factor * b for a, b in zip(rows[other], rows[column], strict=True)
                ]
    return [row[-1] for row in rows]


def _terms(width: float, side: int) -> tuple[float, ...]:
    w, r = math.log(width), math.log(side / 224)
    return (1.0, w, r, w * w, r * r, w * r)


def _covered(spec: MobileNetSpec) -> bool:
    return (
        spec.height == spec.across
        and spec.variant == "separable"
        and spec.total_stride == 32
        and min(PUBLISHED_WIDTHS) <= spec.width <= max(PUBLISHED_WIDTHS)
        and min(PUBLISHED_RESOLUTIONS) <= spec.height <= max(PUBLISHED_RESOLUTIONS)
    )
