"""`create_model`: a network by its name, with weights where they are given."""

from __future__ import annotations

from pathlib import Path

from mobilenets.architecture.network import PAPER_DROPOUT, MobileNet
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.weights.state import load_strictly, read_safetensors


def create_model(
    model: str | MobileNetSpec,
    num_classes: int | None = 1000,
    *,
    weights: str | Path | None = None,
    dropout: float = PAPER_DROPOUT,
) -> MobileNet:
    """Build a network.

    Args:
        model: a name such as `0.5-160`, or a specification.
        num_classes: outputs; None for pooled features.
        weights: a `.safetensors` file or a run folder of this library; None for initial weights.
        dropout: share of pooled features dropped in training.

    Raises:
        ValueError: the name is unknown, or the weights are of another model; both are named.

    >>> sum(p.numel() for p in create_model("0.5-160", num_classes=10).parameters())
    823722
    """
    spec = MobileNetSpec.parse(model) if isinstance(model, str) else model
    network = MobileNet(spec, num_classes, dropout=dropout)
    if weights is not None:
        path = Path(weights)
        if path.is_dir():
            path = path / "model.safetensors"
        load_strictly(network, read_safetensors(path), str(weights))
    return network
