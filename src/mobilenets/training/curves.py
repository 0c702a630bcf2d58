"""The figures of every epoch, to `metrics.csv` and to TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from mobilenets.training.checkpoint import write_aside


class Curves:
    """Writes one row an epoch; names with a slash, such as `val/top1`, group in TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, float]] = []
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._board.close()

    def add(self, epoch: int, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of an epoch that ended at a step."""
        self._rows.append({"epoch": epoch, "step": step, **figures})
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self._rows[0]))
        writer.writeheader()
        writer.writerows(self._rows)
        write_aside(self._folder / "metrics.csv", text.getvalue().encode())
        for name, value in figures.items():
            self._board.add_scalar(name, value, epoch)
        self._board.flush()


def read_curves(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`.

    Raises:
        ValueError: the run has none yet.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{path}: this run has no metrics yet")
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
