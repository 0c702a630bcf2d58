"""One figure as the paper prints it, and the verdict that follows from the exact value.

A figure may be rounded or cut off; both occur in the paper, sometimes in one table. Where neither
fits, the count may follow another convention; where none fits, a digit may be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

Verdict = Literal[
    "match",
    "match (rounded)",
    "match (truncated)",
    "other convention",
    "misprint",
    "not reproduced",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Unit = Literal["", "M", "G", "%", "points", "times"]
Value = int | Fraction | str

_SCALES: dict[Unit, int] = {"M": 10**6, "G": 10**9}


class Alternative(NamedTuple):
    """What the figure would be if it were counted in another, named way."""

    convention: str
    value: Value


class Misprint(NamedTuple):
    """What should have been printed; it counts only if the computed value agrees with it."""

    should_be: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One printed figure beside the exact value.

    Args:
        row, column: where it stands in the table; `text` rows are claims in the text around it.
        printed: the figure as printed, without its unit.
        unit: `M` is millions, `G` thousands of them; `computed` is always in ones.
        computed: exact whole number, fraction or text; None where arithmetic cannot give it.
        counted: what `computed` counts.
        step: the last place that the figure states, where trailing zeros hide it; None takes the
            last printed digit.
        alternatives: other conventions, tried in order.
        misprint: tried last.
        note: what else a reader should know.
        source: where the figure is printed.

    >>> Figure(row="1.0 MobileNet-160", column="mult-adds", printed="290", unit="M",
    ...        computed=290_675_200, source="Table 7").verdict
    'match (truncated)'
    """

    row: str
    column: str
    printed: str
    computed: Value | None
    source: str
    unit: Unit = ""
    counted: str = ""
    step: str | None = None
    alternatives: tuple[Alternative, ...] = ()
    misprint: Misprint | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the comparison says; see `VERDICTS`."""
        return self._judged[0]

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return self._judged[1]

    @cached_property
    def _judged(self) -> tuple[Verdict, str]:
        agreed = self._agreement(self.printed, self.computed)
        if agreed is not None:
            return agreed, _joined(self.counted, self._cut_off(agreed), self.note)
        for other in self.alternatives:
            if self._agreement(self.printed, other.value) is not None:
                found = f"{other.convention}: {show(other.value)}"
                return "other convention", _joined(found, self.note)
        if self.misprint and self._agreement(self.misprint.should_be, self.computed) is not None:
            found = f"should be {self.misprint.should_be}: {self.misprint.why}"
            return "misprint", _joined(found, self.note)
        return "not reproduced", _joined(
            self.counted, self.note or "no convention tried here gives it"
        )

    def _cut_off(self, agreed: Verdict) -> str:
        if agreed != "match (truncated)":
            return ""
        unit = _last_place(self.printed, self.step)
        above = Fraction(self.printed) + unit
        return f"rounded it would print as {float(above):g}"

    def _agreement(self, printed: str, value: Value | None) -> Verdict | None:
        if value is None:
            return None
        if isinstance(value, str):
            return "match" if printed == value else None
        return compare(printed, Fraction(value, _SCALES.get(self.unit, 1)), step=self.step)

    def to_dict(self) -> dict[str, Any]:
        """One row of `paper table --json`; `computed` and `alternatives` are in ones."""
        return {
            "row": self.row,
            "column": self.column,
            "printed": self.printed,
            "unit": self.unit,
            "computed": None if self.computed is None else _plain(self.computed),
            "counted": self.counted,
            "verdict": self.verdict,
            "reason": self.reason,
            "alternatives": {a.convention: _plain(a.value) for a in self.alternatives},
            "should_be": self.misprint.should_be
            if self.misprint and self.verdict == "misprint"
            else None,
            "source": self.source,
        }


def compare(
    printed: str, value: Fraction, *, step: str | None = None
) -> Literal["match (rounded)", "match (truncated)"] | None:
    """Whether `value`, rounded or cut off at the last printed place, prints as `printed`.

    Halves round up. Where both agree, the answer is `match (rounded)`.

    >>> compare("76", Fraction("76.5248")), compare("720", Fraction("724.4"), step="10")
    ('match (truncated)', 'match (rounded)')
    """
    unit = _last_place(printed, step)
    target = Fraction(printed)
    if math.floor(value / unit + Fraction(1, 2)) * unit == target:
        return "match (rounded)"
    if math.floor(value / unit) * unit == target:
        return "match (truncated)"
    return None


def show(value: Value | None) -> str:
    """An exact value for people: whole numbers in full, fractions to three decimals.

    >>> show(568740352), show(Fraction(138, 5)), show(None)
    ('568,740,352', '27.600', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.3f}"


def verdict_counts(figures: Iterable[Figure]) -> dict[Verdict, int]:
    """How often each verdict occurs, in the order of `VERDICTS`, those that do not left out."""
    found = [figure.verdict for figure in figures]
    return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}


def _last_place(printed: str, step: str | None) -> Fraction:
    return Fraction(step) if step else Fraction(1, 10 ** len(printed.partition(".")[2]))


def _plain(value: Value) -> int | float | str:
    return float(value) if isinstance(value, Fraction) else value


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
