"""How many of the same are let in against how many of others, for people to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mobilenets.tasks.embedding.verification import roc
from mobilenets.web.pictures import save_picture


def draw_roc(same_S: NDArray[np.floating], others_O: NDArray[np.floating], path: Path) -> None:
    """Draw the ROC curve from similarities of pairs of the same and of others."""
    points = roc(same_S, others_O)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.step(*zip(*points, strict=True), where="post", color="#1b6ca8")
    axes.set(
        xscale="log",
        xlabel=f"share of {len(others_O):,} pairs of others that are let in (FAR)",
        ylabel=f"share of {len(same_S):,} pairs of the same (TAR)",
        ylim=(0, 1.02),
    )
    axes.grid(color="#d9d9d9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)
