"""The figures of every epoch, to `metrics.csv` and to TensorBoard."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from mobilenets.data.files import write_aside

_COUNTS = ("epoch", "step")


class Curves:
    """Writes one row an epoch; names with a slash, such as `val/top1`, group in TensorBoard.

    Args:
        folder: the run's.
        epochs: epochs that are kept of what is there, when a run goes on.
    """

    def __init__(self, folder: Path, epochs: int = 0) -> None:
        self._folder = folder
        self._epochs = epochs
        self._rows = [row for row in _read(folder) if row["epoch"] <= epochs]

    def __enter__(self) -> Self:
        # Half a second to import, and prediction does not need it.
        from torch.utils.tensorboard import SummaryWriter

        self._hook = threading.excepthook
        threading.excepthook = self._note
        try:
            self._board = SummaryWriter(
                str(self._folder / "tensorboard"), purge_step=self._epochs + 1
            )
        except OSError:
            threading.excepthook = self._hook
            raise
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        threading.excepthook = self._hook
        try:
            self._board.close()
        except OSError:
            # A full disk has been reported already, by what could not be written before.
            if kind is None:
                raise

    def _note(self, failed: threading.ExceptHookArgs) -> None:
        # TensorBoard writes in a thread, whose failure it raises again in the next call from here.
        if not isinstance(failed.exc_value, OSError):
            self._hook(failed)

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

    def add_pictures(self, name: str, epoch: int, pictures: Sequence[Image.Image]) -> None:
        """Show pictures, such as predictions, side by side."""
        if not pictures:
            return
        pixels = np.concatenate([np.asarray(picture.convert("RGB")) for picture in pictures], 1)
        self._board.add_image(name, pixels, epoch, dataformats="HWC")

    def add_choices(self, choices: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Write the hyper-parameters beside what they led to."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in choices.items()
        }
        self._board.add_hparams(plain, dict(figures), run_name=".")


def read_curves(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`.

    Raises:
        ValueError: the run has none yet.
    """
    rows = _read(folder)
    if not rows:
        raise ValueError(f"{folder / 'metrics.csv'}: this run has no metrics yet")
    return rows


def curve_of(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, list[float]]:
    """Some figures of `read_curves`, each as its values by epoch, rounded for a file that is kept.

    >>> curve_of([{"val/top1": 0.5, "epoch": 1}, {"val/top1": 0.6, "epoch": 2}], ["val/top1"])
    {'val/top1': [0.5, 0.6]}
    """
    return {name: [round(row[name], 5) for row in rows] for name in names}


def _read(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            return [
                {key: int(value) if key in _COUNTS else float(value) for key, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (ValueError, TypeError, csv.Error):
        raise ValueError(
            f"{path} is damaged: put it right, or move it away to go on without the curves so far"
        ) from None
