"""The family as a page to choose with: accuracy against cost, a budget, and the network layer by layer.

The page multiplies what the cost code tells it of each layer, so that its figures are those of `mobilenets cost`. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mobilenets.architecture.layer_rows import layers_of
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost import fit_accuracy
from mobilenets.cost.budget import RULE, published_candidates
from mobilenets.cost.latency import LatencyProfile
from mobilenets.web.pages import embedded, render

CLASSES = 1000
WIDTHS = tuple(step / 20 for step in range(1, 31))
SIDES = tuple(range(32, 321, 8))


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A run as a point of the chart.

    Args:
        name: what the page calls it.
        figure: what its accuracy is, such as `val top1`.
        value: in percent.
        bytes_fp32, bytes_int8: of its parameters.
        latency_ms: where a profile covers it.
    """

    name: str
    figure: str
    value: float
    mult_adds: int
    parameters: int
    bytes_fp32: int
    bytes_int8: int
    latency_ms: float | None = None


def explorer_page(profile: LatencyProfile | None = None, runs: Sequence[OwnModel] = ()) -> str:
    """The page, whole in itself.

    Args:
        profile: of a device, for milliseconds.
        runs: points besides the 16 published models.
    """
    return render("explorer.html", data=embedded(explorer_data(profile, runs)))


def explorer_data(
    profile: LatencyProfile | None = None, runs: Sequence[OwnModel] = ()
) -> dict[str, Any]:
    """What the page knows: of each layer its kind, of each width its channels, of each resolution its sizes.

    >>> data = explorer_data()
    >>> len(data["layers"]), data["channels"]["0.5"][:3], data["sizes"]["160"][:3]
    (28, [16, 16, 32], [80, 80, 80])
    """
    whole = layers_of(MobileNetSpec(), CLASSES)
    return {
        "classes": CLASSES,
        "rule": RULE,
        "widths": WIDTHS,
        "sides": SIDES,
        "layers": [
            {
                "name": row.name,
                "type": row.type,
                "kernel": row.kernel,
                "bias": row.bias,
                "batch_norm": row.batch_norm,
            }
            for row in whole
        ],
        "channels": {
            f"{width:g}": [row.out_channels for row in layers_of(MobileNetSpec(width), CLASSES)]
            for width in WIDTHS
        },
        "sizes": {
            f"{side}": [row.out_size[0] for row in layers_of(MobileNetSpec(1.0, side), CLASSES)]
            for side in SIDES
        },
        "published": {
            precision: [candidate.to_dict() for candidate in published_candidates(int8=int8)]
            for precision, int8 in (("fp32", False), ("int8", True))
        },
        "fits": {
            precision: asdict(fit_accuracy(int8=int8))
            for precision, int8 in (("fp32", False), ("int8", True))
        },
        "latency": None if profile is None else _latency(profile),
        "runs": [asdict(run) for run in runs],
    }


def _latency(profile: LatencyProfile) -> dict[str, Any]:
    """Milliseconds of the models that a profile covers.

    Raises:
        ValueError: none of the published ones is among them.
    """
    if not any(profile.covers(candidate.spec) for candidate in published_candidates()):
        raise ValueError("the latency profile covers none of the models")
    specs = {f"{width:g}-{side}": MobileNetSpec(width, side) for width in WIDTHS for side in SIDES}
    return {
        "device": profile.device,
        "runtime": profile.runtime,
        "threads": profile.threads,
        "precision": profile.precision,
        "milliseconds": {
            name: round(profile.ms(spec), 3) for name, spec in specs.items() if profile.covers(spec)
        },
    }
