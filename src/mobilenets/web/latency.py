"""Latency against accuracy, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mobilenets.deploy.benchmark import Row
from mobilenets.web.pictures import check_picture, save_picture


def draw_latency(rows: Sequence[Row], path: Path) -> None:
    """Draw one point a model and runtime whose accuracy is known, and a line a runtime through those that none beats."""
    known = [(row, row.top1) for row in rows if row.top1 is not None]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys((row.runtime, row.batch, row.threads) for row, _ in known):
        here = sorted(
            (
                point
                for point in known
                if (point[0].runtime, point[0].batch, point[0].threads) == kind
            ),
            key=lambda point: point[0].median_ms,
        )
        times = [row.median_ms for row, _ in here]
        runtime, batch, threads = kind
        (dots, *_) = axes.errorbar(
            times,
            [top1 for _, top1 in here],
            xerr=(
                [row.median_ms - row.lower_ms for row, _ in here],
                [row.upper_ms - row.median_ms for row, _ in here],
            ),
            fmt=".",
            capsize=2,
            label=f"{runtime}, batch {batch}, {threads} threads",
        )
        best = accumulate((top1 for _, top1 in here), max)
        front = [point for point, top1 in zip(here, best, strict=True) if point[1] == top1]
        axes.plot(
            [row.median_ms for row, _ in front],
            [top1 for _, top1 in front],
            color=dots.get_color(),
            linewidth=1,
        )
        for point in here:
            row, top1 = point
            left = point in front
            axes.annotate(
                row.name,
                (row.median_ms, top1),
                (-5, 4) if left else (5, -9),
                textcoords="offset points",
                size=8,
                ha="right" if left else "left",
            )
    axes.margins(x=0.12)
    axes.set(xscale="log", xlabel="milliseconds a call", ylabel="top-1, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#d9d9d9", linewidth=0.6, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_picture(figure, path)


def check_latency_picture(path: Path, *, known: bool) -> None:
    """Before minutes of timing: whether the picture could be drawn afterwards.

    Args:
        known: whether the accuracy of any model is.

    Raises:
        ValueError: no accuracy is known, the file's ending is no picture's, or its folder is missing.
    """
    if not known:
        raise ValueError("--plot needs accuracies: published models such as 0.5-160, or runs")
    check_picture(path)
