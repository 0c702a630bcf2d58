"""`create_model`: a network by its name, with weights where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mobilenets.architecture.network import PAPER_DROPOUT, MobileNet
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.weights.imported import ImportedWeights, Said
from mobilenets.weights.load import load_weights
from mobilenets.weights.state import STEM, load_strictly, read_safetensors, split_head


def create_model(
    model: str | MobileNetSpec,
    num_classes: int | None = 1000,
    *,
    weights: str | Path | None = None,
    new_classifier: bool = False,
    dropout: float = PAPER_DROPOUT,
) -> MobileNet:
    """Build a network.

    Args:
        model: a name such as `0.5-160`, or a specification.
        num_classes: outputs; None for pooled features.
        weights: published ones such as `keras/0.5-160` (see `mobilenets weights list`), a run folder, a
            file of any project that `mobilenets weights import` reads, an address, or
            `hf://OWNER/NAME`; None for initial weights. Padding and activation follow from them where
            `model` is a name.
        new_classifier: take the body alone from the weights, for other classes.
        dropout: share of pooled features dropped in training.

    Raises:
        ValueError: the name is unknown, or the weights are of another model; both are named.
        ImportError: a package that knows the format of the weights is missing.

    >>> sum(p.numel() for p in create_model("0.5-160", num_classes=10).parameters())
    823722
    """
    spec = MobileNetSpec.parse(model) if isinstance(model, str) else model
    state: Mapping[str, Tensor] | None = None
    if weights is not None:
        state = _plain_state(Path(weights))
        if state is None:
            imported = load_weights(weights, said=Said(resolution=spec.height))
            state = imported.state
            spec = _agreed(spec, imported, str(weights), named=isinstance(model, str))
    network = MobileNet(spec, num_classes, dropout=dropout)
    if state is not None:
        if new_classifier:
            body, _ = split_head(state)
            _, head = split_head(network.state_dict())
            state = body | head
        load_strictly(network, state, str(weights))
    return network


def _plain_state(path: Path) -> dict[str, Tensor] | None:
    """Weights of ours that come without a specification; None for any others."""
    if path.is_dir() and not (path / "config.json").is_file():
        return read_safetensors(path / "model.safetensors")
    if path.suffix == ".safetensors" and path.is_file():
        state = read_safetensors(path)
        return state if STEM in state else None
    return None


def _agreed(
    wanted: MobileNetSpec, found: ImportedWeights, origin: str, *, named: bool
) -> MobileNetSpec:
    """The wanted specification with what its name does not hold, which weights bring along."""
    if not isinstance(found.spec, MobileNetSpec):
        raise ValueError(f"{origin} is a {found.spec}, and a classifier is asked for")
    ours, theirs = wanted.to_dict(), found.spec.to_dict()
    untold = ("rounding", "activation", "padding", "batch_norm_epsilon", "input_channels")
    told = ("total_stride",) if "total_stride" in found.sure else ()
    other = [
        f"{name.replace('_', ' ')} {theirs[name]} for {ours[name]}"
        for name in (*told, *(() if named else untold))
        if theirs[name] != ours[name]
    ]
    if other:
        raise ValueError(f"{origin} does not fit this model: it has {', '.join(other)}")
    return replace(wanted, **{name: theirs[name] for name in untold})
