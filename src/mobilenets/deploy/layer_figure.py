"""What int8 costs each layer, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobilenets.deploy.simulate import LayerError

MOST = 60.0
_ALONE, _TOGETHER = "#0b7a4b", "#8a5a00"


def draw_layers(errors: Sequence[LayerError], title: str, path: Path) -> None:
    """Write a PNG: a dot a layer and figure; low is bad."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.24 * len(errors)), layout="constrained")
    axes = figure.subplots()
    places = range(len(errors))
    # A layer without any error has no end of decibels.
    alone = [min(error.alone, MOST) for error in errors]
    together = [min(error.together, MOST) for error in errors]
    axes.hlines(places, together, alone, color="#d9d9d9", linewidth=1)
    axes.plot(alone, places, "o", color=_ALONE, label="at the outputs, this layer alone in int8")
    axes.plot(together, places, "D", color=_TOGETHER, label="at this layer, all layers in int8")
    axes.set_yticks(list(places), [error.layer for error in errors], fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="signal over noise, dB: the lower, the worse")
    axes.grid(axis="x", color="#d9d9d9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110, metadata={"Software": None})
