"""PyTorch's exported programs."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mobilenets.runtimes.eager import use_threads

_CONFIG, _TENSORS = "_config.json", ("weight_", "tensor_")


class Pt2Model:
    """A `.pt2`, run by PyTorch without a compiler.

    Args:
        path: the file.
        threads: how many cores one call may use; 0 leaves it to PyTorch.

    Raises:
        ValueError: the file is no such program, takes something else than one image batch, or holds
            pickled objects, which could run any code.
    """

    name = "PyTorch (exported)"

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            _refuse_pickles(path)
            program = torch.export.load(path)
        # Its own exceptions have no common class.
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{path}: not a program that PyTorch reads ({reason})") from None
        (example,), _ = program.example_inputs
        _, channels, height, width = example.shape
        self.input_shape: tuple[int, int, int] = (channels, height, width)
        self._module = program.module()
        self._threads = threads

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output for a batch, such as logits (N, K)."""
        use_threads(self._threads)
        with torch.inference_mode():
            outputs: NDArray[np.float32] = self._module(torch.from_numpy(inputs_NCHW)).numpy()
        return outputs


def _refuse_pickles(path: Path) -> None:
    """Make sure that a program is read as plain tensors; PyTorch's own reader unpickles whatever is in it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        plain = any("/data/weights/" in name and name.endswith(_CONFIG) for name in names)
        for name in names:
            if name.endswith(_CONFIG):
                for entry in json.loads(archive.read(name))["config"].values():
                    plain &= not entry["use_pickle"] and entry["path_name"].startswith(_TENSORS)
            elif name.endswith(".pt") and "/data/sample_inputs/" in name:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif name.endswith(".pt"):
                plain = False
    if not plain:
        raise ValueError("it holds pickled objects, which could run any code")
