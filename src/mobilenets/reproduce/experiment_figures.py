"""An experiment as a picture: every training as a dot, the means, the fitted line, the paper beside it."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenets.data.files import write_aside
from mobilenets.reproduce.experiments import Experiment, mult_adds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGENET_CLASSES = 1000
_INK, _FAINT, _PAPER = "#0b7a4b", "#d9d9d9", "#8a5a00"


def draw(
    experiment: Experiment, top1: Mapping[str, Sequence[float]], data: str, path: Path
) -> None:
    """Write a PNG: measured here on the left, the paper's ImageNet figures on the right.

    Args:
        top1: of each model, in percent, one for each seed.
        data: what the models were trained on, for the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    here, paper = figure.subplots(1, 2)
    costs = [mult_adds(model) / 1e6 for model in experiment.models]
    means = [statistics.fmean(top1[model]) for model in experiment.models]
    for cost, model in zip(costs, experiment.models, strict=True):
        here.plot([cost] * len(top1[model]), top1[model], "o", color=_INK, alpha=0.45, markersize=5)
    here.plot(costs, means, "_", color=_INK, markersize=14, markeredgewidth=2)
    fit = experiment.fit(top1)
    label = "mult-adds, millions (logarithmic)"
    if fit is not None:
        ends = [min(costs), max(costs)]
        line = [fit.at(cost * 1e6) for cost in ends]
        here.plot(ends, line, "--", color=_INK, linewidth=1, zorder=0)
        label += f"; line: {fit.slope:+.2f} points a doubling"
    here.set(title=f"{data}, here", xlabel=label, ylabel="test top-1, %")
    _finish(here, costs, means, experiment.models)
    costs = [mult_adds(model, IMAGENET_CLASSES) / 1e6 for model in experiment.papers]
    paper.plot(costs, experiment.printed, "D", color=_PAPER, markersize=6)
    paper.set(title="ImageNet, as the paper prints it", xlabel="mult-adds, millions (logarithmic)")
    _finish(paper, costs, experiment.printed, experiment.papers)
    figure.suptitle(f"{experiment.title} ({experiment.source})")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, image.getvalue())


def _finish(
    axes: Axes, costs: Sequence[float], values: Sequence[float], models: Sequence[str]
) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    wide = max(costs) > 3 * min(costs)
    axes.set_xscale("log")
    # Room for the names, which stand to the right of their points.
    axes.set_xlim(min(costs) / 1.25, max(costs) * (max(costs) / min(costs)) ** 0.4 * 1.6)
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if wide else (1, 1.5, 2, 2.5, 3, 4, 5, 7))
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.5g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    for cost, value, model in zip(costs, values, models, strict=True):
        axes.annotate(
            model,
            (cost, value),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
