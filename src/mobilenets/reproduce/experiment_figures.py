"""An experiment as a picture: every training as a dot, the means, the fitted line, the paper beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenets.data.files import write_aside
from mobilenets.reproduce.experiments import Experiment, mult_adds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

    figure = Figure(figsize=(9.5, 4), layout="constrained")
    here, paper = figure.subplots(1, 2)
    costs = [mult_adds(model) / 1e6 for model in experiment.models]
    means = [sum(top1[model]) / len(top1[model]) for model in experiment.models]
    for cost, model in zip(costs, experiment.models, strict=True):
        values = top1[model]
        here.plot([cost] * len(values), values, "o", color=_INK, alpha=0.45, markersize=5)
    here.plot(costs, means, "_", color=_INK, markersize=18, markeredgewidth=2)
    fit = experiment.fit(top1)
    if fit is not None:
        ends = [min(costs), max(costs)]
        line = [fit.at(cost * 1e6) for cost in ends]
        here.plot(ends, line, "--", color=_INK, linewidth=1, zorder=0)
        here.set_xlabel(
            f"mult-adds, millions (logarithmic); line: {fit.slope:+.2f} points a doubling"
        )
    else:
        here.set_xlabel("mult-adds, millions (logarithmic)")
    here.set_title(f"{data}, here", fontsize=10)
    paper.plot(costs, experiment.printed, "D", color=_PAPER, markersize=6)
    paper.set_xlabel("the same models on the same axis")
    paper.set_title("ImageNet, as the paper prints it", fontsize=10)
    for axes, values in ((here, means), (paper, experiment.printed)):
        _finish(axes, costs, values, experiment.models)
    here.set_ylabel("test top-1, %")
    figure.suptitle(f"{experiment.title} ({experiment.source})", fontsize=11)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, image.getvalue())


def _finish(
    axes: Axes, costs: Sequence[float], values: Sequence[float], models: Sequence[str]
) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
    axes.set_xticks(costs, [f"{cost:.3g}" for cost in costs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    for cost, value, model in zip(costs, values, models, strict=True):
        axes.annotate(
            model,
            (cost, value),
            xytext=(0, -16),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
