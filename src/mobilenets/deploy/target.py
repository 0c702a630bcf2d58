"""The runtimes that a run can be exported for; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenets.runtimes.model import Model, Runtime, find_runtime

if TYPE_CHECKING:
    from mobilenets.deploy.exportable import Exportable

FLOAT, INT8 = "fp32", "int8"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file, and what writes it.

    Args:
        name: on the command line.
        title: of the runtime, for people.
        file: the bundle's model file.
        packages: what is imported to write it.
        distributions: what they are installed as, whose versions a bundle names.
        extra: of this package, that installs them; empty where they are always there.
        writer: a module with `write(model, path)`.
        runtime: that executes it on this machine; empty where none does.
        quantised_by: another target, whose packages make its int8 too.
        corrects_bias: its own quantiser makes up for the shifts that int8 brings.
        rounds_activations: int8 is not of weights alone.
        channels_last: the input is (N, H, W, C).
        normalises: the file takes values from 0 to 255 and gives shares.
        selects: a detector's file selects the best boxes by itself.
        any_batch: takes any number of images at a time, not one.
    """

    name: str
    title: str
    file: str
    packages: tuple[str, ...]
    distributions: tuple[str, ...]
    extra: str
    writer: str
    runtime: str
    corrects_bias: bool = False
    rounds_activations: bool = True
    channels_last: bool = False
    normalises: bool = False
    selects: bool = False
    any_batch: bool = True
    quantised_by: str = ""

    def check_installed(self, precision: str = FLOAT) -> None:
        """Make sure that files of a precision can be written and read back.

        Raises:
            ImportError: something is not installed; it says how to install it.
        """
        needs = {self.extra: self.packages}
        if precision == INT8 and self.quantised_by:
            other = TARGETS[self.quantised_by]
            needs[other.extra] = other.packages
        for extra, packages in needs.items():
            if any(find_spec(package) is None for package in packages):
                raise ImportError(
                    f"exporting to {self.name} needs more: pip install 'mobilenets[{extra}]'"
                )

    def write(self, model: Exportable, path: Path) -> None:
        """Write a network as a file for this runtime."""
        import_module(self.writer).write(model, path)

    def distributions_for(self, precision: str) -> tuple[str, ...]:
        """The packages whose versions decide what is in a file."""
        others = TARGETS[self.quantised_by].distributions if self.quantised_by else ()
        return self.distributions + (others if precision == INT8 else ())

    def input_of(self, model: Exportable) -> dict[str, object]:
        """What a file takes, for its manifest."""
        channels, height, width = model.input_shape
        last = [height, width, channels] if self.channels_last else [channels, height, width]
        return {
            "shape": last,
            "layout": "HWC" if self.channels_last else "CHW",
            "batch": "any" if self.any_batch else 1,
            "values": "0 to 255" if self.normalises else "normalised",
        }

    @property
    def reader(self) -> Runtime | None:
        """The runtime that proves a file, where one runs here."""
        return find_runtime(self.runtime) if self.runtime else None

    def open(self, path: Path, threads: int = 0) -> Model | None:
        """Load a file in its own runtime, where one runs here."""
        return None if self.reader is None else self.reader.open(path, threads)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="onnx",
            title="ONNX",
            file="model.onnx",
            packages=("onnx", "onnxscript", "onnxruntime"),
            distributions=("onnx", "onnxscript", "onnxruntime"),
            extra="",
            writer="mobilenets.deploy.onnx",
            selects=True,
            runtime="onnxruntime",
        ),
        Target(
            name="litert",
            title="LiteRT (TensorFlow Lite)",
            file="model.tflite",
            packages=("litert_torch", "ai_edge_litert", "ai_edge_quantizer", "mediapipe"),
            distributions=("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "mediapipe"),
            extra="litert",
            writer="mobilenets.deploy.litert",
            selects=True,
            runtime="litert",
            channels_last=True,
            any_batch=False,
        ),
        Target(
            name="executorch",
            title="ExecuTorch (XNNPACK)",
            file="model.pte",
            packages=("executorch", "torchao"),
            distributions=("executorch", "torchao"),
            extra="executorch",
            writer="mobilenets.deploy.executorch",
            runtime="executorch",
            any_batch=False,
        ),
        Target(
            name="openvino",
            title="OpenVINO",
            file="model.xml",
            packages=("openvino", "nncf"),
            distributions=("openvino", "nncf"),
            extra="openvino",
            writer="mobilenets.deploy.openvino",
            selects=True,
            runtime="openvino",
            corrects_bias=True,
        ),
        Target(
            name="coreml",
            title="Core ML",
            file="model.mlpackage",
            packages=("coremltools",),
            distributions=("coremltools",),
            extra="coreml",
            writer="mobilenets.deploy.coreml",
            runtime="",
            rounds_activations=False,
            normalises=True,
            any_batch=False,
        ),
        Target(
            name="pt2",
            title="PyTorch (torch.export)",
            file="model.pt2",
            packages=("torch",),
            distributions=(),
            extra="",
            writer="mobilenets.deploy.pt2",
            runtime="pt2",
            quantised_by="executorch",
        ),
    )
}


def find_targets(names: list[str]) -> list[Target]:
    """Targets by name, each once.

    Raises:
        ValueError: names the one that is none.

    >>> [target.file for target in find_targets(["onnx", "litert"])]
    ['model.onnx', 'model.tflite']
    """
    for name in names:
        if name not in TARGETS:
            raise ValueError(f"unknown target {name!r}: the targets are {', '.join(TARGETS)}")
    return [TARGETS[name] for name in dict.fromkeys(names)]
