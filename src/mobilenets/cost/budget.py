"""Which models fit a budget, best first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost.accuracy import AccuracyFit, fit_accuracy
from mobilenets.cost.count import Cost, cost
from mobilenets.cost.latency import LatencyProfile
from mobilenets.cost.published import PUBLISHED, SOURCES
from mobilenets.cost.quantities import format_quantity

RULE = "highest ImageNet top-1 first; at equal top-1 the fewest mult-adds"
GRID_WIDTHS = tuple(step / 20 for step in range(5, 21))
GRID_SIDES = tuple(range(128, 225, 8))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model with its cost and its published or interpolated top-1 in percent."""

    spec: MobileNetSpec
    cost: Cost
    top1: float
    top1_source: str
    interpolated: bool
    int8: bool
    latency_ms: float | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in the precision that was asked for."""
        return self.cost.bytes_int8 if self.int8 else self.cost.bytes_fp32

    def to_dict(self) -> dict[str, Any]:
        """One row of `pick --json`."""
        latency = {} if self.latency_ms is None else {"latency_ms": round(self.latency_ms, 3)}
        return {
            "model": str(self.spec),
            "top1": round(self.top1, 1),
            "top1_source": self.top1_source,
            "interpolated": self.interpolated,
            "precision": "int8" if self.int8 else "fp32",
            "bytes": self.bytes,
            "mult_adds": self.cost.mult_adds,
            "parameters": self.cost.parameters,
            **latency,
        }


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One bound of a budget: how to read it off a candidate, and which side is allowed."""

    option: str
    bound: float
    value: Callable[[Candidate], float]
    at_least: bool = False
    unit: str = ""

    def allows(self, candidate: Candidate) -> bool:
        """Whether the candidate keeps within this bound."""
        value = self.value(candidate)
        return value >= self.bound if self.at_least else value <= self.bound

    def excess(self, candidate: Candidate) -> float:
        """How far beyond the bound, as a factor: 1 or less is within."""
        value = self.value(candidate)
        return self.bound / value if self.at_least else value / self.bound

    def show(self, value: float) -> str:
        """A value of this limit for people."""
        return f"{value:.3g}ms" if self.unit == "ms" else format_quantity(value, self.unit)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent; None is no limit. Bytes are parameters, at int8 when `int8` is set; latency
    is in milliseconds, by a profile of the device that is given to `pick`.

    Raises:
        ValueError: a limit is no number, or not above 0.

    >>> [str(c.spec) for c in pick(Budget(max_mult_adds=150e6))][:2]
    ['0.5-224', '0.75-128']
    """

    max_mult_adds: float | None = None
    max_parameters: float | None = None
    max_bytes: float | None = None
    max_latency_ms: float | None = None
    min_top1: float | None = None
    int8: bool = False

    def __post_init__(self) -> None:
        for limit in self.limits():
            if (
                math.isnan(limit.bound)
                or limit.bound < 0
                or (not limit.bound and not limit.at_least)
            ):
                least = "0 or more" if limit.at_least else "above 0"
                raise ValueError(f"{limit.option} must be {least}, not {limit.bound}")

    def limits(self) -> tuple[Limit, ...]:
        """The bounds that are set. One more kind of limit is one more row here."""
        rows = (
            ("--max-mult-adds", self.max_mult_adds, lambda c: c.cost.mult_adds, False, ""),
            ("--max-parameters", self.max_parameters, lambda c: c.cost.parameters, False, ""),
            ("--max-bytes", self.max_bytes, lambda c: c.bytes, False, "B"),
            ("--max-latency", self.max_latency_ms, lambda c: c.latency_ms or math.inf, False, "ms"),
            ("--min-top1", self.min_top1, lambda c: c.top1, True, " %"),
        )
        return tuple(
            Limit(option=option, bound=bound, value=value, at_least=at_least, unit=unit)
            for option, bound, value, at_least, unit in rows
            if bound is not None
        )


class NothingFitsError(ValueError):
    """No candidate fits. The message says which limit rules everything out; `nearest` is closest."""

    def __init__(self, message: str, nearest: Candidate) -> None:
        super().__init__(message)
        self.nearest = nearest


def published_candidates(num_classes: int = 1000, *, int8: bool = False) -> tuple[Candidate, ...]:
    """The 16 models with their 2018 top-1, which is ImageNet's whatever `num_classes` costs."""
    return tuple(
        Candidate(
            spec=row.spec,
            cost=cost(row.spec, num_classes),
            top1=row.top1(int8=int8),
            top1_source=SOURCES["slim-2018-int8" if int8 else "slim-2018"],
            interpolated=False,
            int8=int8,
        )
        for row in PUBLISHED
    )


def interpolated_candidates(
    num_classes: int = 1000, *, int8: bool = False
) -> tuple[Candidate, ...]:
    """Widths 0.25 to 1.0 in steps of 0.05, sides 128 to 224 in steps of 8, top-1 from the curve."""
    fit: AccuracyFit = fit_accuracy(int8=int8)
    specs = (MobileNetSpec(width, side) for width in GRID_WIDTHS for side in GRID_SIDES)
    return tuple(
        Candidate(
            spec=spec,
            cost=cost(spec, num_classes),
            top1=fit.top1(spec),
            top1_source=f"interpolated, off by {fit.residual:.1f} points on the published 16",
            interpolated=True,
            int8=int8,
        )
        for spec in specs
    )


def pick(
    budget: Budget,
    num_classes: int = 1000,
    *,
    any_size: bool = False,
    profile: LatencyProfile | None = None,
) -> list[Candidate]:
    """The models that fit, best first: highest top-1, then fewest mult-adds.

    Args:
        budget: the limits.
        num_classes: outputs of the classifier; they count towards mult-adds, parameters, bytes.
        any_size: also widths and resolutions that were never published, accuracy interpolated.
        profile: of the device that a limit on latency is for, of 1,000 classes; models that it does not
            cover are left out.

    Raises:
        ValueError: latency is limited, and no profile is given or it is of another precision.
        NothingFitsError: names the limit that rules everything out and the nearest model.
    """
    candidates = published_candidates(num_classes, int8=budget.int8)
    if any_size:
        published = {candidate.spec for candidate in candidates}
        grid = interpolated_candidates(num_classes, int8=budget.int8)
        candidates += tuple(c for c in grid if c.spec not in published)
    if profile is not None:
        if (profile.precision == "int8") != budget.int8:
            asked = "int8" if budget.int8 else "fp32"
            raise ValueError(
                f"the latency profile is of {profile.precision} models, not of {asked}: give another"
            )
        candidates = tuple(
            replace(candidate, latency_ms=profile.ms(candidate.spec))
            for candidate in candidates
            if profile.covers(candidate.spec)
        )
        if not candidates:
            raise ValueError("the latency profile covers none of the models")
    elif budget.max_latency_ms is not None:
        raise ValueError("a limit on latency needs a profile of the device")
    limits = budget.limits()
    fitting = [c for c in candidates if all(limit.allows(c) for limit in limits)]
    if not fitting:
        raise _nothing_fits(candidates, limits)
    return sorted(fitting, key=lambda c: (-c.top1, c.cost.mult_adds))


def _nothing_fits(candidates: Sequence[Candidate], limits: Iterable[Limit]) -> NothingFitsError:
    limits = tuple(limits)
    nearest = min(candidates, key=lambda c: max(limit.excess(c) for limit in limits))
    alone = [limit for limit in limits if not any(limit.allows(c) for c in candidates)]
    if alone:
        reasons = " and ".join(_ruled_out(limit, candidates) for limit in alone)
    else:
        together = " and ".join(f"{limit.option} {limit.show(limit.bound)}" for limit in limits)
        reasons = f"each limit can be kept, but not {together} together"
    exceeded = ", ".join(
        f"{limit.show(limit.value(nearest))} for {limit.option} {limit.show(limit.bound)}"
        for limit in limits
        if not limit.allows(nearest)
    )
    return NothingFitsError(
        f"no model fits: {reasons}; nearest is {nearest.spec} ({exceeded})", nearest
    )


def _ruled_out(limit: Limit, candidates: Sequence[Candidate]) -> str:
    values = [limit.value(candidate) for candidate in candidates]
    best = max(values) if limit.at_least else min(values)
    word = "most accurate has" if limit.at_least else "smallest has"
    return f"{limit.option} {limit.show(limit.bound)} rules out all {len(values)} models, the {word} {limit.show(best)}"
