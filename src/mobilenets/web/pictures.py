"""Figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def check_picture(path: Path) -> None:
    """Before minutes of work: whether a picture could be drawn afterwards.

    Raises:
        ValueError: the file's ending is no picture's, or its folder is missing.
    """
    endings = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in endings:
        raise ValueError(f"--plot {path}: the name of a picture ends in {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot {path}: there is no such folder")


def save_picture(figure: Figure, path: Path) -> None:
    """Write it, the same bytes for the same figure."""
    figure.savefig(path, dpi=110, metadata={"Software": None} if path.suffix == ".png" else None)
