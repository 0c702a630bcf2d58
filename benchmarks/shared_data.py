"""What lies in the folder of real data and weights, for the benchmarks beside this file."""

from __future__ import annotations

import tarfile
from pathlib import Path

from mobilenets.weights.download import name_of
from mobilenets.weights.registry import find_weights
from verb import mobilenets


def files_of(shared: Path, weights: str) -> list[Path]:
    """The files of published weights, such as `coral/0.5-160`."""
    return [shared / "weights" / name_of(file.address) for file in find_weights(weights).files]


def imported(shared: Path, weights: str, run: Path) -> Path:
    """Published weights as a run, unless it is there."""
    if not run.is_dir():
        mobilenets("weights", "import", *files_of(shared, weights), "--output", run)
    return run


def unpacked(shared: Path, name: str, place: Path) -> Path:
    """A set of photos as a folder, unless it is there."""
    if not (place / name).is_dir():
        with tarfile.open(shared / "data" / f"{name}.tar") as archive:
            archive.extractall(place, filter="data")
    return place / name
