"""A run as a folder for another runtime: the file, all that is needed to use it, and the proof that it is equal."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.architecture.detector import Selection
from mobilenets.data.files import check_replaceable, folder_aside, publish, read_json, sha256
from mobilenets.data.progress import progress
from mobilenets.deploy.departure import find_departure
from mobilenets.deploy.equalise import equalise, room_for_biases
from mobilenets.deploy.evidence import Evidence
from mobilenets.deploy.exportable import Exportable, Int8
from mobilenets.deploy.layer_figure import draw_layers
from mobilenets.deploy.simulate import LayerError, Simulation, shift_biases
from mobilenets.deploy.target import FLOAT, INT8, Target
from mobilenets.runtimes.model import Model
from mobilenets.training.agreement import Agreement
from mobilenets.training.run import Run
from mobilenets.training.task import Form, Task

FORMAT = 1
MANIFEST = "manifest.json"
_BESIDE = {
    MANIFEST, "README.md", "cells.json", "golden.npz", "labels.txt", "layers.json", "layers.png", "preprocessing.json",
}  # fmt: skip
BATCH = 32
# Points of top-1 or mAP; without labels, percent of answers that change, most of which were unsure.
MAX_LOSS, MAX_CHANGED = 1.0, 10.0
# How many of the worst layers stay in float, one attempt after another.
RESCUES = (0, 2, 4, 8)
LAYER_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How to make int8, and what it may cost.

    Args:
        calibration_NCHW: real images for the ranges.
        max_loss: points of top-1 or mAP that may be lost; without labels, percent of answers that may change.
            None is 1, and 10 without labels.
        per_channel: one scale for each output channel's weights, not one for all.
    """

    calibration_NCHW: Tensor
    max_loss: float | None = None
    per_channel: bool = True


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A folder that was written."""

    folder: Path
    manifest: dict[str, Any]
    parity: Agreement | None

    @property
    def file(self) -> Path:
        """The model file."""
        return self.folder / str(self.manifest["file"])


def folder_of(run: Run, target: Target, precision: str) -> Path:
    """Where a bundle goes when no folder is named: `RUN/onnx`, `RUN/litert-int8`."""
    return run.folder / (target.name if precision == FLOAT else f"{target.name}-{precision}")


def proven_file(run: Run, target: Target, precision: str) -> tuple[Path, Form] | None:
    """A file whose manifest says that it is equal, or loses no more than it may, of just these weights and bytes; and what it gives."""
    folder = folder_of(run, target, precision)
    file = folder / target.file
    try:
        manifest = read_json(folder / MANIFEST)
        good = (
            manifest["parity"]["holds"] is True
            if precision == FLOAT
            else manifest["lost"] <= manifest["max_loss"]
        )
        same = manifest["weights_sha256"] == run.weights_sha256 and manifest["sha256"] == checksums(
            file
        )
        form: Form = manifest.get("form", "network")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (file, form) if good and same and file.exists() else None


def export(
    run: Run,
    target: Target,
    folder: Path,
    evidence: Evidence,
    quantisation: Quantisation | None = None,
    *,
    raw: bool = False,
    overwrite: bool = False,
) -> Bundle:
    """Write a run for a runtime, read the file back there and compare it with the run.

    The folder gets the model file, `preprocessing.json`, `labels.txt`, `golden.npz` (`input` and the run's
    `output` for the first image), `README.md`, `manifest.json`, and with int8 `layers.json`. It
    appears whole, or not at all.

    Args:
        raw: a detector's file gives all boxes, where otherwise it would select the best.

    Raises:
        ImportError: the target's packages are not installed.
        ValueError: the folder holds something else, or the file computes something else.
    """
    precision = FLOAT if quantisation is None else INT8
    target.check_installed(precision)
    folder = folder.resolve()
    check_free(folder, overwrite=overwrite)
    weights = run.weights_sha256
    with folder_aside(folder) as aside:
        path = aside / target.file
        model = Exportable.of_run(run)
        if target.selects and not raw:
            model = replace(model, selection=run.task.selection)
        form: Form = model.form if model.selection is None else "found"
        judge = _Judge(run.task.reading(form), evidence, _reference(run, form, evidence))
        if quantisation is None:
            about, parity = _float(model, target, path, judge)
        else:
            about, parity = _int8(model, target, path, judge, quantisation)
        manifest = {
            "format": FORMAT,
            "model": str(run.spec),
            "task": run.task.name,
            "target": target.name,
            "file": target.file,
            "bytes": sum(file.stat().st_size for file in model_files(path)),
            "sha256": checksums(path),
            "weights_sha256": weights,
            "input": target.input_of(model),
            "form": form,
            "labels": len(model.labels),
            "exclusive": model.exclusive,
            "precision": precision,
            **about,
            "versions": {
                name: version(name)
                for name in ("mobilenets", "torch", *target.distributions_for(precision))
            },
        }
        _write_beside(model, aside, judge, manifest, parity, target)
        if run.weights_sha256 != weights:
            raise ValueError(f"{run.folder} got other weights meanwhile: export it once more")
        publish(aside, folder)
    return Bundle(folder=folder, manifest=manifest, parity=parity)


@dataclass(frozen=True)
class _Judge:
    """What a file is compared with.

    Args:
        task: reads the file's outputs.
        reference: what the run gives for the evidence, in the same form.
    """

    task: Task
    evidence: Evidence
    reference: NDArray[np.float32]

    @cached_property
    def before(self) -> float | None:
        """The task's figure of the run."""
        return self.figure(self.reference)

    def figure(self, outputs: NDArray[np.float32]) -> float | None:
        """The task's figure of a file's outputs, where the evidence is labelled."""
        return self.evidence.figure(self.task, outputs)

    def lost(self, figure: float | None, parity: Agreement) -> float:
        """Points lost of the task's figure; without labels, percent of answers that changed."""
        if self.before is None or figure is None:
            return 100 * (1 - parity.share)
        # The figures are of 32 bits.
        return round(100 * (self.before - figure), 4)

    def about(self, target: Target, figure: float | None) -> dict[str, Any]:
        """What was measured, for the manifest."""
        assert target.reader is not None
        return {
            "runtime": target.reader.title,
            "images": self.evidence.source,
            self.task.monitor: {"fp32": self.before, "file": figure},
        }


def _reference(run: Run, form: Form, evidence: Evidence) -> NDArray[np.float32]:
    network = run.task.in_file(run.model, form).eval()

    def call(images_NCHW: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs: Tensor = network(images_NCHW.contiguous(memory_format=torch.channels_last))
        return outputs.numpy()

    return _outputs(call, evidence.images_NCHW)


def _float(
    model: Exportable, target: Target, path: Path, judge: _Judge
) -> tuple[dict[str, Any], Agreement | None]:
    target.write(model, path)
    outputs = _executed(target, path, judge.evidence)
    if outputs is None:
        return {"parity": None, "runtime": None}, None
    parity = judge.task.compare(judge.reference, outputs)
    if not parity.holds:
        where = find_departure(model, target, judge.evidence.images_NCHW[:BATCH])
        raise ValueError(
            f"the {target.title} file computes something else and was not kept: {parity}; "
            f"it departs at {where}"
        )
    return {**judge.about(target, judge.figure(outputs)), "parity": parity.to_dict()}, parity


def _int8(
    model: Exportable,
    target: Target,
    path: Path,
    judge: _Judge,
    how: Quantisation,
) -> tuple[dict[str, Any], Agreement | None]:
    images_NCHW = how.calibration_NCHW
    if not target.rounds_activations:
        int8 = Int8(images_NCHW=images_NCHW, per_channel=how.per_channel)
        target.write(model.quantised(int8), path)
        return {"float_layers": [], "parity": None, "runtime": None}, None
    alike = equalise(model.network, images_NCHW, per_channel=how.per_channel)
    equal = model.with_network(room_for_biases(alike, images_NCHW))
    simulation = Simulation(equal.network, images_NCHW, per_channel=how.per_channel)
    errors = simulation.errors(images_NCHW[:LAYER_IMAGES])
    _write_layers(errors, path.parent)
    draw_layers(errors, f"{target.title}, int8", path.parent / "layers.png")
    worst = sorted(range(len(errors)), key=lambda number: errors[number].alone)
    task, labelled = judge.task, judge.evidence.targets_N is not None
    allowed = (MAX_LOSS if labelled else MAX_CHANGED) if how.max_loss is None else how.max_loss
    tried: list[float] = []
    for count in RESCUES:
        keep = frozenset(worst[:count])
        int8 = Int8(images_NCHW=images_NCHW, keep=keep, per_channel=how.per_channel)
        given = equal.quantised(int8)
        if not target.corrects_bias:
            names = {errors[number].layer for number in range(len(errors)) if number not in keep}
            shifts = simulation.bias_corrections(images_NCHW, names)
            given = given.with_network(shift_biases(given.network, shifts))
        _remove(path)
        target.write(given, path)
        outputs = _executed(target, path, judge.evidence)
        assert outputs is not None
        about = {"float_layers": [errors[number].layer for number in sorted(keep)]}
        parity = task.compare(judge.reference, outputs)
        figure = judge.figure(outputs)
        tried.append(judge.lost(figure, parity))
        if tried[-1] <= allowed:
            return {
                **about,
                **judge.about(target, figure),
                "lost": tried[-1],
                "max_loss": allowed,
                "parity": asdict(parity),
            }, parity
    what = (
        f"it loses {{:.2f}} points of {task.figure_title}"
        if labelled
        else f"{{:.2f}} % of {task.answers} change"
    )
    tune = ""
    if model.form == "network":
        tune = ", or fine-tune the run first with mobilenets quantise"
    raise ValueError(
        f"int8 for {target.title} was not kept: {what.format(tried[0])} on {len(judge.reference)} images, "
        f"and {tried[-1]:.2f} with the {RESCUES[-1]} worst layers in float, where {allowed:g} may: "
        f"allow more with --max-loss{tune}"
    )


def _executed(target: Target, path: Path, evidence: Evidence) -> NDArray[np.float32] | None:
    """What a file says to the images, in its own runtime; None where none runs here."""
    model: Model | None = target.open(path)
    if model is None:
        return None
    return _outputs(lambda images: model.run(images.numpy()), evidence.images_NCHW)


def _outputs(
    call: Callable[[Tensor], NDArray[np.float32]], images_NCHW: Tensor
) -> NDArray[np.float32]:
    found = []
    with progress("comparing", len(images_NCHW)) as advance:
        for batch_NCHW in torch.split(images_NCHW, BATCH):
            found.append(call(batch_NCHW.contiguous()))
            advance(len(batch_NCHW))
    return np.concatenate(found)


def _write_layers(errors: Sequence[LayerError], folder: Path) -> None:
    rows = [
        {key: None if value == math.inf else value for key, value in asdict(error).items()}
        for error in errors
    ]
    (folder / "layers.json").write_text(json.dumps(rows, indent=2) + "\n")


def _write_beside(
    model: Exportable,
    folder: Path,
    judge: _Judge,
    manifest: dict[str, Any],
    parity: Agreement | None,
    target: Target,
) -> None:
    def write(name: str, text: str) -> None:
        (folder / name).write_text(text, encoding="utf-8", newline="\n")

    write("preprocessing.json", json.dumps(model.preprocessing.to_dict(), indent=2) + "\n")
    write("labels.txt", "".join(f"{label}\n" for label in model.labels))
    for name, content in judge.task.beside().items():
        write(name, json.dumps(content) + "\n")
    image_NCHW, output = judge.evidence.images_NCHW[:1], torch.from_numpy(judge.reference[:1])
    if target.normalises:
        image_NCHW = model.pixels(image_NCHW)
        output = output.softmax(1) if model.form == "network" and model.exclusive else output
    np.savez(folder / "golden.npz", input=image_NCHW.numpy(), output=output.numpy())
    write(MANIFEST, json.dumps(manifest, indent=2) + "\n")
    pages = Environment(
        loader=PackageLoader("mobilenets.deploy"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (Markdown)
    )
    text = pages.get_template("README.md").render(
        manifest=manifest,
        target=target,
        preprocessing=model.preprocessing,
        parity=parity,
        title=judge.task.figure_title,
        figure=manifest.get(judge.task.monitor),
        output=model.output,
        output_told=judge.task.output_told,
        beside=sorted(judge.task.beside()),
        most=judge.reference.shape[1],
        overlap=Selection().overlap,
    )
    write("README.md", text)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a bundle may be written to a folder.

    Raises:
        ValueError: it holds a bundle (unless it may be replaced) or other files.
    """
    ours: set[str] | None = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        ours = {Path(name).parts[0] for name in read_json(folder / MANIFEST)["sha256"]} | _BESIDE
    check_replaceable(folder, "an export", ours, overwrite=overwrite)


def checksums(path: Path) -> dict[str, str]:
    """SHA-256 of each file that a model is made of, by its name in the bundle."""
    return {file.relative_to(path.parent).as_posix(): sha256(file) for file in model_files(path)}


def model_files(path: Path) -> list[Path]:
    """The files of a model that is a folder, or has its weights in a file beside it."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    weights = {".xml": path.with_suffix(".bin"), ".onnx": path.with_name(f"{path.name}.data")}
    beside = weights.get(path.suffix, path)
    return [file for file in dict.fromkeys((path, beside)) if file.is_file()]


def _remove(path: Path) -> None:
    for file in model_files(path):
        file.unlink()
    if path.is_dir():
        shutil.rmtree(path)
