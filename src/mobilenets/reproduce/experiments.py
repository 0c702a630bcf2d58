"""What the paper claims of its models, as experiments on small images, and when a claim holds.

Torch-free: which models to train, what is claimed of their accuracies, and the verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.spec import PUBLISHED_WIDTHS
from mobilenets.cost import cost

Verdict = Literal["holds", "does not hold", "undecided"]
CLASSES = 10
WIDTHS = PUBLISHED_WIDTHS
# Near the paper's 224, 160 and 128. Sides between them leave odd maps, which round up: 28 pixels cost 9 % less
# than 32 at s16, where the paper's 192 cost 26 % less than 224.
SIDES = (32, 24, 16)
SEEDS_TO_DECIDE = 3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the experiments are.

    Args:
        width: of the models that differ in something else than their width.
        total_stride: of all models.
        epochs: of each training.
        fraction: of the training images that is used.
        seeds: trainings of each model.
    """

    name: str
    width: float
    total_stride: int
    epochs: int
    seeds: int
    fraction: float = 1.0


QUICK = Scale(name="quick", width=0.25, total_stride=16, epochs=1, seeds=1, fraction=0.02)
SMALL = Scale(name="small", width=0.5, total_stride=16, epochs=8, seeds=3)
FULL = Scale(name="full", width=1.0, total_stride=8, epochs=60, seeds=3)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That a weighted sum of top-1 accuracies, in points, is above a bound.

    Args:
        text: the claim in words.
        weights: what each model's mean counts.
        above: the bound in percentage points.
    """

    text: str
    weights: Mapping[str, float]
    above: float = 0.0

    def judge(self, top1: Mapping[str, Sequence[float]]) -> Finding:
        """Compare with what was measured.

        The gap is how far the sum of the means lies above the bound, the spread the standard
        deviation of such a sum of single trainings. A gap of more than twice the spread decides, which
        for three seeds is a t of 3.46, p about 0.03; with fewer than three, nothing does. The spread
        is that between seeds alone: all models share one test set.

        Args:
            top1: of each model, in percent, one for each seed.

        >>> claim = Claim(text="a beats b", weights={"a": 1, "b": -1})
        >>> claim.judge({"a": [87, 90, 93], "b": [56, 60, 64]})
        Finding(text='a beats b', gap=30.0, spread=5.0, verdict='holds')
        """
        gap = sum(w * statistics.fmean(top1[name]) for name, w in self.weights.items()) - self.above
        seeds = min(len(top1[name]) for name in self.weights)
        if seeds < 2:
            return Finding(text=self.text, gap=gap, spread=None, verdict="undecided")
        spread = math.sqrt(
            sum(w**2 * statistics.variance(top1[name]) for name, w in self.weights.items())
        )
        verdict: Verdict = "undecided"
        if seeds >= SEEDS_TO_DECIDE and abs(gap) > 2 * spread:
            verdict = "holds" if gap > 0 else "does not hold"
        return Finding(text=self.text, gap=gap, spread=spread, verdict=verdict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a claim; gap and spread in percentage points."""

    text: str
    gap: float
    spread: float | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Models that differ in one thing, and the paper's claims about them.

    Args:
        source: where the paper says so.
        models: by name, the reference first.
        papers: each model's counterpart in the paper.
        printed: its top-1 on ImageNet as the paper prints it, in percent.
        fitted: models that the line of accuracy against the logarithm of mult-adds goes through.
    """

    name: str
    title: str
    source: str
    models: tuple[str, ...]
    papers: tuple[str, ...]
    printed: tuple[float, ...]
    claims: tuple[Claim, ...]
    fitted: tuple[str, ...] = ()

    def judge(self, top1: Mapping[str, Sequence[float]]) -> tuple[Verdict, list[Finding]]:
        """The verdict of all claims together, and each one's finding."""
        findings = [claim.judge(top1) for claim in self.claims]
        return overall([finding.verdict for finding in findings]), findings

    def fit(self, top1: Mapping[str, Sequence[float]]) -> Fit | None:
        """The line through the fitted models' means."""
        if not self.fitted:
            return None
        return fit_line(
            [math.log2(mult_adds(model)) for model in self.fitted],
            [statistics.fmean(top1[model]) for model in self.fitted],
        )


@dataclass(frozen=True)
class Fit:
    """`top-1 = intercept + slope * log2(mult-adds)`; slope in points for each doubling.

    `residual` is the root mean square distance of the points from the line.
    """

    intercept: float
    slope: float
    residual: float

    def at(self, mult_adds: float) -> float:
        """The line's top-1 in percent."""
        return self.intercept + self.slope * math.log2(mult_adds)


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> Fit:
    """Least squares.

    >>> fit_line([1, 2, 3], [10, 12, 14])
    Fit(intercept=8.0, slope=2.0, residual=0.0)
    """
    slope, intercept = statistics.linear_regression(xs, ys)
    errors = [intercept + slope * x - y for x, y in zip(xs, ys, strict=True)]
    return Fit(intercept, slope, math.sqrt(statistics.fmean(error**2 for error in errors)))


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One claim that fails is enough for "does not hold"; one left open, else, for "undecided".

    >>> overall(["holds", "undecided"]), overall(["undecided", "does not hold"])
    ('undecided', 'does not hold')
    """
    for verdict in ("does not hold", "undecided"):
        if verdict in verdicts:
            return verdict
    return "holds"


def mult_adds(model: str, classes: int = CLASSES) -> int:
    """Of one image.

    >>> mult_adds("1.0-32-s16"), mult_adds("1.0-224", 1000)
    (46354432, 568740352)
    """
    return cost(MobileNetSpec.parse(model), num_classes=classes).mult_adds


def experiments(scale: Scale) -> dict[str, Experiment]:
    """The four experiments at a scale, by name.

    >>> experiments(SMALL)["table4"].models
    ('0.5-32-s16', '0.5-32-s16-fullconv')
    """

    def named(width: float, side: int = SIDES[0], variant: str = "") -> str:
        return f"{width}-{side}-s{scale.total_stride}{variant}"

    separable, full = named(scale.width), named(scale.width, variant="-fullconv")
    thin, shallow = named(0.75), named(1.0, variant="-shallow")
    widths = tuple(named(width) for width in WIDTHS)
    sides = tuple(named(scale.width, side) for side in SIDES)
    whole = (
        Experiment(
            name="table4",
            title="Depthwise separable against full convolution",
            source="Table 4",
            models=(separable, full),
            papers=("1.0-224", "1.0-224-fullconv"),
            printed=(70.6, 71.7),
            claims=(
                Claim(text="the full one is better", weights={full: 1, separable: -1}),
                Claim(
                    text="by no more than the paper's 1.1 points",
                    weights={separable: 1, full: -1},
                    above=-1.1,
                ),
            ),
        ),
        Experiment(
            name="table5",
            title="Thin against shallow at equal cost",
            source="Table 5",
            models=(thin, shallow),
            papers=("0.75-224", "1.0-224-shallow"),
            printed=(68.4, 65.3),
            claims=(Claim(text="the thin one is better", weights={thin: 1, shallow: -1}),),
        ),
        Experiment(
            name="width",
            title="The width multiplier",
            source="Table 6, Figures 4 and 5",
            models=widths,
            papers=tuple(f"{width}-224" for width in WIDTHS),
            printed=(70.6, 68.4, 63.7, 50.6),
            claims=(*_falling("width", WIDTHS, widths), _drop_off(widths)),
            fitted=widths[:-1],
        ),
        Experiment(
            name="resolution",
            title="The resolution multiplier",
            source="Table 7, Figures 4 and 5",
            models=sides,
            papers=("1.0-224", "1.0-160", "1.0-128"),
            printed=(70.6, 67.2, 64.4),
            claims=_falling("resolution", SIDES, sides),
            fitted=sides,
        ),
    )
    return {experiment.name: experiment for experiment in whole}


def _falling(what: str, values: Sequence[float], models: Sequence[str]) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            text=f"{what} {values[i]} is better than {values[i + 1]}",
            weights={models[i]: 1, models[i + 1]: -1},
        )
        for i in range(len(models) - 1)
    )


def _drop_off(models: Sequence[str]) -> Claim:
    """That the last model lies below the line through the others (section 4.2: the accuracy "drops
    off smoothly until the architecture is made too small at alpha = 0.25").

    The line's value there is a weighted sum of the others' accuracies, so that the claim is one too.
    """
    *others, last = models
    xs = [math.log2(mult_adds(model)) for model in others]
    middle = statistics.fmean(xs)
    squares = sum((x - middle) ** 2 for x in xs)
    off = math.log2(mult_adds(last)) - middle
    weights = {
        model: 1 / len(xs) + off * (x - middle) / squares
        for model, x in zip(others, xs, strict=True)
    }
    return Claim(
        text="width 0.25 falls below the line of the others", weights=weights | {last: -1.0}
    )


def find_experiments(names: Sequence[str], scale: Scale) -> list[Experiment]:
    """Experiments by name, all of them when none is named.

    Raises:
        ValueError: names the one that is not there.
    """
    known = experiments(scale)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown experiment {name!r}: the experiments are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names or known)]


def to_dict(experiment: Experiment, top1: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """An experiment's measured figures and verdicts as plain values; top-1 in percent."""
    verdict, findings = experiment.judge(top1)
    fit = experiment.fit(top1)
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "verdict": verdict,
        "models": [
            {
                "model": model,
                "mult_adds": mult_adds(model),
                "top1": [round(value, 2) for value in top1[model]],
                "mean": round(statistics.fmean(top1[model]), 2),
                "deviation": round(statistics.stdev(top1[model]), 2)
                if len(top1[model]) > 1
                else None,
                "paper": paper,
                "paper_imagenet_top1": printed,
            }
            for model, paper, printed in zip(
                experiment.models, experiment.papers, experiment.printed, strict=True
            )
        ],
        "claims": [
            {
                "claim": finding.text,
                "gap": round(finding.gap, 2),
                "spread": None if finding.spread is None else round(finding.spread, 2),
                "verdict": finding.verdict,
            }
            for finding in findings
        ],
        "fit": None
        if fit is None
        else {
            "points_per_doubling": round(fit.slope, 3),
            "intercept": round(fit.intercept, 3),
            "residual": round(fit.residual, 3),
            "through": list(experiment.fitted),
        },
    }
