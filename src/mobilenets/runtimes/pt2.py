"""PyTorch's exported programs."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobilenets.runtimes.eager import run_module
from mobilenets.runtimes.quiet import in_short

_CONFIG, _TENSORS = "_config.json", ("weight_", "tensor_")
_KNOWN = re.compile(
    r"data/(weights/(weight_\d+|\w+_config\.json)|constants/(tensor_\d+|\w+_config\.json)"
    r"|sample_inputs/\w+\.pt)|models/\w+\.json|archive_(format|version)|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format/\w+"
)
_SIZE = re.compile(r"Symbol\('\w+'(, \w+=True)*\)|-?\d+")


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
            _refuse_code(path)
            program = torch.export.load(path)
            (example,), _ = program.example_inputs
            _, channels, height, width = example.shape
        # Its own exceptions have no common class.
        except Exception as error:
            raise ValueError(
                f"{path}: not a program that PyTorch reads ({in_short(error)})"
            ) from None
        self.input_shape: tuple[int, int, int] = (channels, height, width)
        self._module = program.module()
        self._threads = threads

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output for a batch, such as logits (N, K)."""
        return run_module(self._module, torch.from_numpy(inputs_NCHW), self._threads)


def _refuse_code(path: Path) -> None:
    """Make sure that a program holds tensors and a graph alone.

    PyTorch's own reader unpickles objects, loads libraries and evaluates expressions, whatever they are.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len({name.casefold() for name in names}) < len(names):
            raise ValueError("it holds two files of one name")
        for name in names:
            _, _, inside = name.partition("/")
            if not _KNOWN.fullmatch(inside):
                raise ValueError(f"it holds {name}, which could run any code")
            if name.endswith(_CONFIG):
                for entry in json.loads(archive.read(name))["config"].values():
                    if entry["use_pickle"] or not entry["path_name"].startswith(_TENSORS):
                        raise ValueError("it holds pickled objects, which could run any code")
            elif inside.startswith("models/"):
                for expression in _expressions(json.loads(archive.read(name))):
                    if not _SIZE.fullmatch(expression):
                        raise ValueError("it holds expressions that could run any code")
            elif inside.startswith("data/sample_inputs/"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def _expressions(value: Any) -> Iterator[str]:
    """Every expression that PyTorch would evaluate."""
    if isinstance(value, dict):
        if isinstance(value.get("expr_str"), str):
            yield value["expr_str"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _expressions(inner)
