"""Embeddings of a gallery, kept in a file, so that looking among its images again costs the question alone.

Shapes: N images, D values of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mobilenets.data.files import write_aside


@dataclass(frozen=True)
class Index:
    """Embeddings of files by one model.

    Args:
        weights: the checksum of the model's weights.
        files: paths, each with its size and the time of its last change.
        embeddings_ND: of length 1.
    """

    weights: str
    files: tuple[tuple[str, int, int], ...]
    embeddings_ND: NDArray[np.float32]

    def known(self) -> dict[tuple[str, int, int], NDArray[np.float32]]:
        """Embeddings by file as it is now."""
        return dict(zip(self.files, self.embeddings_ND, strict=True))

    def write(self, path: Path) -> None:
        """To a safetensors file."""
        told = {"weights": self.weights, "files": json.dumps(self.files)}
        write_aside(path, save({"embeddings": self.embeddings_ND}, metadata=told))


def file_key(path: Path) -> tuple[str, int, int]:
    """By which a file is known to be the same."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def read_index(path: Path, weights: str) -> Index:
    """Read an index of the same model.

    Raises:
        ValueError: the file is no index, or another model's.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            embeddings_ND = file.get_tensor("embeddings")
        files: Sequence[Sequence[object]] = json.loads(told["files"])
        keys = tuple((str(name), int(str(size)), int(str(time))) for name, size, time in files)
        theirs = told["weights"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no index of `mobilenets search` ({error})") from None
    if theirs != weights:
        raise ValueError(f"{path} holds embeddings of another model: give another --index")
    if len(keys) != len(embeddings_ND):
        raise ValueError(
            f"{path} is damaged: {len(keys)} files and {len(embeddings_ND)} embeddings"
        )
    return Index(theirs, keys, embeddings_ND)
