"""A folder of predictions: Parquet files with a row an image, each of which is whole or not there.

`_results.json` says of what run they are. Readers of Parquet folders pass by names that begin with `_` or `.`.

Shapes: N images.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mobilenets.data.files import read_json, write_aside

ABOUT = "_results.json"
# A file is written when it would hold so much, or when so much time has passed: this much is lost at most.
ROWS, BYTES, SECONDS = 10_000, 1 << 26, 10.0


def is_results(folder: Path) -> bool:
    """Whether a folder holds predictions.

    >>> is_results(Path("nowhere"))
    False
    """
    return (folder / ABOUT).is_file()


class Results:
    """Predictions in a folder that one process at a time adds to; use `open_results`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[pa.Table] = []
        self._written = time.monotonic()
        parts = _parts(folder)
        self._next = 1 + int(parts[-1].stem.removeprefix("part-")) if parts else 0

    def errors(self) -> dict[str, str | None]:
        """Of each image in the files, by its path, what was wrong with it; None where nothing was."""
        known: dict[str, str | None] = {}
        for part in _parts(self._folder):
            columns = _read(part, ["image", "error"]).to_pydict()
            known |= zip(columns["image"], columns["error"], strict=True)
        return known

    def add(self, rows: pa.Table) -> None:
        """Take rows, which are on the disk after `flush` at the latest."""
        self._waiting.append(rows)
        if (
            sum(len(one) for one in self._waiting) >= ROWS
            or sum(one.nbytes for one in self._waiting) >= BYTES
            or time.monotonic() - self._written >= SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        if self._waiting:
            _write(self._folder / f"part-{self._next:06}.parquet", pa.concat_tables(self._waiting))
            self._next += 1
        self._waiting, self._written = [], time.monotonic()

    def forget_errors(self) -> None:
        """Leave out the rows of images that something was wrong with, so that those can be predicted again."""
        for part in _parts(self._folder):
            table = _read(part)
            good = table.filter(pc.is_null(table["error"]))
            if not len(good):
                part.unlink()
            elif len(good) < len(table):
                _write(part, good)


@contextmanager
def open_results(folder: Path, about: Mapping[str, Any]) -> Iterator[Results]:
    """Predictions to go on with, or to begin; what is taken is written when the block ends, however it does.

    Args:
        about: what they are of, for JSON.

    Raises:
        ValueError: the folder holds something else, or predictions of something else, or another process writes to it.
    """
    # As it comes back from the file.
    wanted = json.loads(json.dumps(about))
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give another folder with --output")
    if not is_results(folder) and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no results: give another --output")
    if is_results(folder) and (found := read_json(folder / ABOUT)) != wanted:
        differ = sorted(
            key for key in {*found, *wanted} if found.get(key, key) != wanted.get(key, key)
        )
        raise ValueError(
            f"{folder} holds results of another run or of other options ({', '.join(differ)}): give another --output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder}: another command is writing to it") from None
    try:
        write_aside(folder / ABOUT, json.dumps(wanted, indent=2, ensure_ascii=False).encode())
        results = Results(folder)
        try:
            yield results
        finally:
            results.flush()
    finally:
        lock.release()


def read_outputs(folder: Path) -> tuple[list[str], NDArray[np.float32], tuple[str, ...]]:
    """The images that a network was asked about, its outputs (N, ...), and its labels.

    Raises:
        ValueError: the folder holds none, or is damaged.
    """
    about = read_json(folder / ABOUT)
    if not about.get("outputs"):
        raise ValueError(f"{folder} holds no outputs: mobilenets predict … --outputs writes them")
    names: list[str] = []
    rows: list[NDArray[np.float32]] = []
    for part in _parts(folder):
        table = _read(part, ["image", "outputs"])
        table = table.filter(pc.is_valid(table["outputs"]))
        names += table["image"].to_pylist()
        rows += [chunk.flatten().to_numpy() for chunk in table["outputs"].chunks]
    values = np.concatenate([np.empty(0, np.float32), *rows])
    return names, values.reshape(len(names), *about["outputs"]), tuple(about.get("labels", ()))


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _read(part: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(part, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{part} is damaged ({error})") from None


def _write(part: Path, table: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    write_aside(part, content.getvalue())
