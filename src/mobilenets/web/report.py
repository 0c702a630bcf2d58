"""The report of a trained run: one page that needs nothing but itself."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilenets.architecture.detector import model_layers
from mobilenets.cost.count import count
from mobilenets.cost.quantities import format_quantity
from mobilenets.data.files import write_aside
from mobilenets.data.transforms import scaled, to_picture
from mobilenets.runtimes.timing import Timing
from mobilenets.tasks.classification.analysis import Analysis, Mistake
from mobilenets.training.agreement import Agreement
from mobilenets.training.curves import read_curves
from mobilenets.training.run import Run
from mobilenets.web.pages import data_uri, render

MOST_CLASSES_IN_MATRIX = 30
THUMBNAIL = 96


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What the page shows besides what the run itself holds.

    Args:
        split: the name of the evaluated images, such as `test`.
        figures: their metrics.
        exported: the exported file.
        timings: milliseconds a picture by runtime, and `threads` that they used.
        seconds: how long training took.
    """

    split: str
    figures: Mapping[str, float]
    analysis: Analysis
    exported: Path
    parity: Agreement
    timings: Mapping[str, Timing]
    threads: int
    seconds: float


def write_report(run: Run, data: ReportData, path: Path) -> None:
    """Write the page: curves, confusion matrix, worst mistakes, cost, latency, next commands."""
    counted = count(model_layers(run.spec, run.task.outputs))
    page = render(
        "report.html",
        run=run,
        data=data,
        best=run.config["metrics"],
        curves_svg=_curves_svg(read_curves(run.folder)),
        matrix=_matrix(data.analysis, run.labels),
        mistakes=[_shown(mistake, run) for mistake in data.analysis.mistakes],
        cost=[
            ("mult-adds", f"{counted.mult_adds:,}"),
            ("FLOPs (two per mult-add)", f"{counted.flops:,}"),
            ("parameters", f"{counted.parameters:,}"),
            ("most activations at once", f"{counted.activation_peak:,}"),
            ("parameters in fp32", format_quantity(counted.bytes_fp32, "B")),
            ("parameters in int8", format_quantity(counted.bytes_int8, "B")),
            ("exported file", format_quantity(data.exported.stat().st_size, "B")),
        ],
    )
    write_aside(path, page.encode())


def _curves_svg(rows: Sequence[Mapping[str, float]]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [row["epoch"] for row in rows]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mobilenets", "font.size": 10}):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        loss.plot(epochs, [row["train/loss"] for row in rows], label="training", color="#888")
        loss.plot(epochs, [row["val/loss"] for row in rows], label="validation", color="#0b6")
        loss.set_yscale("log")
        loss.set_title("Loss")
        loss.legend(frameon=False)
        accuracy.plot(epochs, [row["val/top1"] for row in rows], color="#0b6")
        accuracy.set_ylim(0, 1.02)
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
        accuracy.set_title("Validation top-1")
        for axes in (loss, accuracy):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


@dataclass(frozen=True)
class _Cell:
    count: int
    share: float
    right: bool


def _matrix(analysis: Analysis, labels: Sequence[str]) -> list[tuple[str, list[_Cell]]] | None:
    """Rows of the confusion matrix; None where there are too many classes to look at."""
    if len(labels) > MOST_CLASSES_IN_MATRIX:
        return None
    confusion_KK = analysis.confusion_KK
    return [
        (
            label,
            [
                _Cell(int(value), float(value / max(1, row_K.sum())), row == column)
                for column, value in enumerate(row_K)
            ],
        )
        for row, (label, row_K) in enumerate(zip(labels, confusion_KK, strict=True))
    ]


@dataclass(frozen=True)
class _Shown:
    image: str
    target: str
    guess: str
    score: float


def _shown(mistake: Mistake, run: Run) -> _Shown:
    return _Shown(
        # As the network saw it.
        image=data_uri(scaled(to_picture(mistake.input_CHW, run.preprocessing), THUMBNAIL), "PNG"),
        target=run.labels[mistake.target],
        guess=run.labels[mistake.guess],
        score=mistake.score,
    )
