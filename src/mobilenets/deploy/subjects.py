"""What can be timed: runs, exported files, names of the family, and peers; each opened by what names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mobilenets.architecture.detector import Spec
from mobilenets.architecture.network import MobileNet
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost.published import PUBLISHED
from mobilenets.deploy.bundle import model_files
from mobilenets.deploy.exportable import Exportable
from mobilenets.deploy.fold import fold_batch_norm
from mobilenets.deploy.peers import PEERS
from mobilenets.deploy.target import TARGETS, Target
from mobilenets.runtimes.eager import EagerModel
from mobilenets.runtimes.model import RUNTIMES, Model, runtime_of
from mobilenets.training.run import Run

TORCH = "torch"
ONNX = "onnxruntime"
_WRITERS = {target.runtime: target for target in TARGETS.values() if target.runtime}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model in one runtime.

    Args:
        name: for people.
        runtime: `torch`, a name of `RUNTIMES`, or a peer.
        reference: a run folder, a name such as `0.5-160` (initial weights), or a file.
        top1: in percent, where it is known.
        top1_source: what it was measured on.
    """

    name: str
    runtime: str
    reference: str
    top1: float | None = None
    top1_source: str = ""

    @property
    def bytes(self) -> int | None:
        """Of the file that the runtime loads, where it is one."""
        if self.runtime in PEERS:
            return None
        path = Path(self.reference)
        path = path / "model.safetensors" if path.is_dir() else path
        return sum(file.stat().st_size for file in model_files(path)) or None

    def open(self, threads: int) -> Model:
        """Load it for calls that may use so many cores."""
        if self.runtime in PEERS:
            return PEERS[self.runtime].open(threads)
        if self.runtime == TORCH:
            network, spec = _network(self.reference)
            shape = (spec.input_channels, spec.height, spec.across)
            return EagerModel(fold_batch_norm(network), shape, threads)
        path = Path(self.reference)
        return runtime_of(path).open(path, threads)


def find_subjects(references: Sequence[str], runtimes: Sequence[str], aside: Path) -> list[Subject]:
    """Everything that is to be timed; names and runs are exported first for the runtimes that need it.

    Args:
        references: run folders, exported files, names of the family.
        runtimes: for runs and names; a file has its own.
        aside: a folder for exports.

    Raises:
        ValueError: a reference is none, or a runtime is unknown, or runs no runs.
        ImportError: a runtime is not installed.
    """
    for runtime in runtimes:
        if runtime not in (TORCH, *_WRITERS):
            raise ValueError(f"--runtime is {TORCH}, {', '.join(_WRITERS)}, not {runtime!r}")
        if runtime != TORCH:
            _WRITERS[runtime].check_installed()
    found: list[Subject] = []
    for reference in references:
        path = Path(reference)
        if path.is_file() or path.suffix in [known.suffix for known in RUNTIMES]:
            found.append(
                Subject(name=path.name, runtime=runtime_of(path).name, reference=reference)
            )
            continue
        top1, source = _accuracy(reference)
        for runtime in runtimes:
            file = reference
            if runtime != TORCH:
                file = str(_exported(reference, _WRITERS[runtime], aside))
            found.append(
                Subject(
                    name=path.resolve().name if path.is_dir() else reference,
                    runtime=runtime,
                    reference=file,
                    top1=top1,
                    top1_source=source,
                )
            )
    return found


def _network(reference: str) -> tuple[nn.Module, Spec]:
    if Path(reference).is_dir():
        run = Run.load(reference)
        return run.model, run.spec
    spec = MobileNetSpec.parse(reference)
    return MobileNet(spec).eval(), spec


def _accuracy(reference: str) -> tuple[float | None, str]:
    if Path(reference).is_dir():
        top1 = Run.load(reference).config["metrics"].get("top1")
        return (None, "") if top1 is None else (100 * top1, "its own validation images")
    spec = MobileNetSpec.parse(reference)
    published = next((row for row in PUBLISHED if row.spec == spec), None)
    return (None, "") if published is None else (published.top1(), "ImageNet, published")


def _exported(reference: str, target: Target, aside: Path) -> Path:
    network, spec = _network(reference)
    folder = aside / f"{len(list(aside.iterdir()))}"
    folder.mkdir()
    path = folder / target.file
    target.write(Exportable.of_network(network, spec), path)
    return path
