"""One face for all runtimes: a file takes a batch of images and gives an array."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Model(Protocol):
    """Something loaded that takes images.

    `name` is the runtime's, for people; `input_shape` is an image's (C, H, W), whatever order the file
    keeps it in.
    """

    name: str

    @property
    def input_shape(self) -> tuple[int, int, int]: ...

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch, such as logits (N, K)."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime that may be installed.

    Args:
        name: on the command line.
        title: for people.
        suffix: of the files that it runs.
        package: what is imported.
        extra: of this package, that installs it; empty where it is always there.
        opener: module and class.
    """

    name: str
    title: str
    suffix: str
    package: str
    extra: str
    opener: tuple[str, str]

    @property
    def installed(self) -> bool:
        """Whether it can be used here."""
        return find_spec(self.package) is not None

    def open(self, path: Path, threads: int = 0) -> Model:
        """Load a file.

        Args:
            threads: how many cores one call may use; 0 leaves it to the runtime.

        Raises:
            ImportError: the runtime is not installed; it says how to install it.
            ValueError: the file is missing, or is no model that the runtime reads.
        """
        if not self.installed:
            raise ImportError(f"{path} needs {self.title}: pip install 'mobilenets[{self.extra}]'")
        if not path.is_file():
            raise ValueError(f"{path}: there is no such model file")
        module, name = self.opener
        model: Model = getattr(import_module(module), name)(path, threads)
        return model


RUNTIMES = (
    Runtime(
        name="onnxruntime",
        title="ONNX Runtime",
        suffix=".onnx",
        package="onnxruntime",
        extra="",
        opener=("mobilenets.runtimes.onnx", "OnnxModel"),
    ),
    Runtime(
        name="litert",
        title="LiteRT",
        suffix=".tflite",
        package="ai_edge_litert",
        extra="litert",
        opener=("mobilenets.runtimes.litert", "LiteRtModel"),
    ),
    Runtime(
        name="executorch",
        title="ExecuTorch",
        suffix=".pte",
        package="executorch",
        extra="executorch",
        opener=("mobilenets.runtimes.executorch", "ExecuTorchModel"),
    ),
    Runtime(
        name="openvino",
        title="OpenVINO",
        suffix=".xml",
        package="openvino",
        extra="openvino",
        opener=("mobilenets.runtimes.openvino", "OpenVinoModel"),
    ),
    Runtime(
        name="pt2",
        title="PyTorch",
        suffix=".pt2",
        package="torch",
        extra="",
        opener=("mobilenets.runtimes.pt2", "Pt2Model"),
    ),
)


def find_runtime(name: str) -> Runtime:
    """A runtime by its name.

    >>> find_runtime("litert").suffix
    '.tflite'
    """
    return next(runtime for runtime in RUNTIMES if runtime.name == name)


def runtime_of(path: Path) -> Runtime:
    """The runtime that a file is for, by its suffix.

    Raises:
        ValueError: no runtime is for such files.

    >>> runtime_of(Path("model.tflite")).title
    'LiteRT'
    """
    for runtime in RUNTIMES:
        if path.suffix == runtime.suffix:
            return runtime
    known = ", ".join(runtime.suffix for runtime in RUNTIMES)
    raise ValueError(f"{path}: files of models end in {known}")
