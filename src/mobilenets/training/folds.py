"""What the runs of a cross-validation say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from mobilenets.training.curves import read_curves
from mobilenets.training.run import Run


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Each fold's figure after its last epoch, their mean and spread, and where the mean lies with 95 %.

    The best epoch would be chosen on the very images that the figure is of. The interval is Student's for so
    many folds, which share most of their training images, so that it tells less than as many independent
    runs would (Bengio and Grandvalet 2004).
    """
    from scipy.stats import t

    monitor = runs[0].task.monitor
    values = [_last(run) for run in runs]
    mean, spread = fmean(values), stdev(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return {
        "figure": monitor,
        "values": values,
        "images": [run.config["metrics"]["images"] for run in runs],
        "mean": mean,
        "spread": spread,
        "interval": [max(0.0, mean - reach), min(1.0, mean + reach)],
        "runs": [str(run.folder) for run in runs],
    }


def _last(run: Run) -> float:
    monitor = run.task.monitor
    if run.recipe.epochs == 0:
        return float(run.config["metrics"][monitor])
    return read_curves(run.folder)[-1][f"val/{monitor}"]
