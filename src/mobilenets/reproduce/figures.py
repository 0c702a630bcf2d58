"""Figures 4 and 5 drawn anew: the 16 models, accuracy against mult-adds and against parameters.

The paper prints no numbers for them, so that every point carries the source of its accuracy.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.spec import PUBLISHED_RESOLUTIONS, PUBLISHED_WIDTHS
from mobilenets.cost import PUBLISHED, SOURCES, Published, cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Axis = Literal["mult_adds", "parameters"]
FORMATS = (".png", ".svg", ".html")
DEFAULT_SOURCE = "slim-2018"

# Dark to light as the models get cheaper; apart for colour-blind readers and in grey.
_COLOURS = {1.0: "#1b3a6b", 0.75: "#0f7f8c", 0.5: "#d98200", 0.25: "#b3306b"}
_MARKERS = {224: "o", 192: "s", 160: "^", 128: "D"}
# Where a name stands, in points from its marker, so that neighbouring rows stay legible: width 0.75
# runs just above its neighbours, and 0.5 just below width 1.
_NAMES = {
    1.0: ((6.0, -10.0), "left"),
    0.75: ((-5.0, 6.0), "right"),
    0.5: ((1.0, -15.0), "left"),
    0.25: ((6.0, -10.0), "left"),
}
_INK, _FAINT = "#222222", "#d9d9d9"


class Drawing(NamedTuple):
    """What one of the paper's figures shows."""

    number: int
    title: str
    axis: Axis
    label: str
    limits: tuple[float, float]
    ticks: tuple[float, ...]


DRAWINGS: tuple[Drawing, ...] = (
    Drawing(
        number=4,
        title="Accuracy against compute",
        axis="mult_adds",
        label="mult-adds of one image, millions (logarithmic)",
        limits=(10, 800),
        ticks=(10, 20, 50, 100, 200, 500),
    ),
    Drawing(
        number=5,
        title="Accuracy against size",
        axis="parameters",
        label="parameters, millions (logarithmic)",
        limits=(0.38, 6.2),
        ticks=(0.5, 1, 2, 4),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model: exact cost with 1,000 classes, published ImageNet top-1 in percent."""

    spec: MobileNetSpec
    mult_adds: int
    parameters: int
    top1: float
    source: str

    def to_dict(self) -> dict[str, Any]:
        """One row of `paper figure --json`."""
        return {
            "model": str(self.spec),
            "width": self.spec.width,
            "resolution": self.spec.height,
            "mult_adds": self.mult_adds,
            "parameters": self.parameters,
            "top1": self.top1,
            "source": SOURCES[self.source],
        }


def points(source: str = DEFAULT_SOURCE) -> tuple[Point, ...]:
    """The published models that a source gives an accuracy for: 16, or 8 for `paper`.

    Raises:
        ValueError: the source is not one of `cost.SOURCES`.

    >>> points()[0].top1, len(points("paper"))
    (70.9, 8)
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}")
    found = []
    for row in PUBLISHED:
        top1 = _top1(row, source)
        if top1 is not None:
            counted = cost(row.spec)
            found.append(
                Point(
                    spec=row.spec,
                    mult_adds=counted.mult_adds,
                    parameters=counted.parameters,
                    top1=top1,
                    source=source,
                )
            )
    return tuple(found)


def draw(number: int, output: Path, source: str = DEFAULT_SOURCE) -> tuple[Point, ...]:
    """Draw the paper's figure 4 or 5 and give the points in it.

    Args:
        number: 4 (accuracy against mult-adds) or 5 (against parameters).
        output: the file; its suffix says what is written: PNG, SVG, or an HTML page that holds
            the drawing and its data and loads nothing.
        source: a key of `cost.SOURCES`.

    Raises:
        ValueError: another number, suffix or source.
        OSError: the file cannot be written.
    """
    drawing = find_drawing(number)
    suffix = output.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{output}: the file's name must end in {', '.join(FORMATS)}")
    shown = points(source)
    if suffix == ".html":
        output.write_text(_page(drawing, shown, source), encoding="utf-8")
    else:
        output.write_bytes(_rendered(drawing, shown, source, suffix[1:]))
    return shown


def find_drawing(number: int) -> Drawing:
    """What the paper's figure of that number shows.

    Raises:
        ValueError: a figure that is not drawn here.
    """
    for drawing in DRAWINGS:
        if drawing.number == number:
            return drawing
    available = " and ".join(str(drawing.number) for drawing in DRAWINGS)
    raise ValueError(f"figure {number} of the paper is not drawn here: figures {available} are")


def _top1(row: Published, source: str) -> float | None:
    return {
        "paper": row.paper_top1,
        "slim-2017": row.slim_2017_top1,
        "slim-2018": row.slim_2018_top1,
        "slim-2018-int8": row.slim_2018_int8_top1,
    }[source]


def _caption(shown: Sequence[Point], source: str) -> tuple[str, str]:
    """Where the accuracies and the costs come from, a line each."""
    missing = len(PUBLISHED) - len(shown)
    left_out = f"; it gives none for the other {missing} of the {len(PUBLISHED)} models"
    return (
        f"Top-1: {SOURCES[source]}{left_out if missing else ''}.",
        "Costs: counted exactly, with 1,000 classes and batch norm among the parameters.",
    )


def _rendered(drawing: Drawing, shown: Sequence[Point], source: str, kind: str) -> bytes:
    # Imported here because it costs half a second, which only this verb should pay.
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    style = {"font.family": "DejaVu Sans", "font.size": 10, "svg.hashsalt": "mobilenets"}
    buffer = io.BytesIO()
    with mpl.rc_context(style):
        canvas = Canvas(figsize=(8, 6), facecolor="white")
        _plot(canvas, drawing, shown, source)
        # Nothing that changes from one run to the next: equal input gives equal bytes.
        stamps = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
        canvas.savefig(buffer, format=kind, dpi=160, metadata=dict.fromkeys(stamps))
    return buffer.getvalue()


def _plot(canvas: Canvas, drawing: Drawing, shown: Sequence[Point], source: str) -> None:
    axes = canvas.add_axes((0.085, 0.175, 0.885, 0.735))
    axes.set_xscale("log")
    axes.set_xlim(*drawing.limits)
    axes.set_ylim(38, 73)
    axes.set_xticks(drawing.ticks, [f"{tick:g}" for tick in drawing.ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(drawing.label, color=_INK)
    axes.set_ylabel("ImageNet top-1, %", color=_INK)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.text(0.085, 0.945, f"{drawing.title}: {len(shown)} MobileNets", fontsize=13, color=_INK)
    canvas.text(0.085, 0.025, "\n".join(_caption(shown, source)), fontsize=7.5, color="#555555")
    _draw_lines(axes, drawing, shown)
    for point in shown:
        _draw_point(axes, drawing, point)
    _draw_legend(axes)


def _draw_lines(axes: Axes, drawing: Drawing, shown: Sequence[Point]) -> None:
    """One line for what varies along the axis: a width's resolutions, or a resolution's widths."""
    if drawing.axis == "mult_adds":
        for width in PUBLISHED_WIDTHS:
            row = [point for point in shown if point.spec.width == width]
            axes.plot(*_coordinates(drawing, row), color=_COLOURS[width], linewidth=1.2, alpha=0.6)
    else:
        for side in PUBLISHED_RESOLUTIONS:
            row = [point for point in shown if point.spec.height == side]
            axes.plot(*_coordinates(drawing, row), color="#999999", linewidth=1.0, alpha=0.8)


def _draw_point(axes: Axes, drawing: Drawing, point: Point) -> None:
    from matplotlib.patheffects import withStroke

    (x,), (y,) = _coordinates(drawing, [point])
    width, side = point.spec.width, point.spec.height
    axes.plot(
        x,
        y,
        marker=_MARKERS[side],
        markersize=7.5,
        color=_COLOURS[width],
        markeredgecolor="white",
        markeredgewidth=0.8,
    )
    if drawing.axis == "parameters":
        text, (offset, align) = f"{side}: {point.top1:.1f}", ((8.0, -3.5), "left")
    else:
        text, (offset, align) = str(point.spec), _NAMES[width]
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha=align,
        fontsize=7.5,
        color=_COLOURS[width],
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _draw_legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    widths = [
        Line2D(
            [], [], marker="o", linestyle="", markersize=7.5, color=colour, label=f"width {width}"
        )
        for width, colour in _COLOURS.items()
    ]
    sides = [
        Line2D([], [], marker=marker, linestyle="", color="#777777", label=f"{side} pixels")
        for side, marker in _MARKERS.items()
    ]
    axes.legend(
        handles=[*widths, *sides],
        ncols=2,
        loc="lower right",
        framealpha=1,
        edgecolor="none",
        fontsize=9,
    )


def _coordinates(
    drawing: Drawing, shown: Sequence[Point]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Millions, and percent."""
    millions = tuple(
        (point.mult_adds if drawing.axis == "mult_adds" else point.parameters) / 1e6
        for point in shown
    )
    return millions, tuple(point.top1 for point in shown)


def _page(drawing: Drawing, shown: Sequence[Point], source: str) -> str:
    import html

    svg = _rendered(drawing, shown, source, "svg").decode()
    # Inside a page the XML declaration and the document type have no place.
    inline = svg[svg.index("<svg") :].replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(drawing.title)}" ', 1
    )
    rows = "\n".join(
        f"<tr><th scope=row>{point.spec}</th><td>{point.top1:.1f}</td>"
        f"<td>{point.mult_adds:,}</td><td>{point.parameters:,}</td></tr>"
        for point in sorted(shown, key=lambda point: -point.top1)
    )
    title = html.escape(f"MobileNets, figure {drawing.number}: {drawing.title.lower()}")
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {_INK}; background: #fff;
  max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem 1rem .25rem 0; text-align: right; border-bottom: 1px solid {_FAINT}; }}
th:first-child {{ text-align: left; }}
</style>
<h1>{title}</h1>
{inline}
<p>{html.escape(" ".join(_caption(shown, source)))}</p>
<table>
<thead><tr><th scope=col>model</th><th scope=col>top-1 %</th><th scope=col>mult-adds</th>
<th scope=col>parameters</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</html>
"""
