"""An exported file computes what the run computes, or it is not kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilenets import Run, tasks
from mobilenets.architecture import MobileNetSpec, Preprocessing
from mobilenets.deploy.bundle import MANIFEST, export
from mobilenets.deploy.evidence import Evidence, find_evidence
from mobilenets.deploy.fold import fold_batch_norm
from mobilenets.deploy.target import TARGETS
from mobilenets.runtimes.onnx import OnnxModel
from mobilenets.training.agreement import compare
from mobilenets.training.checkpoint import write_weights
from mobilenets.weights.create import create_model

CLASSIFICATION = tasks.find("classification")
ONNX = TARGETS["onnx"]
FILES = (
    "README.md",
    "golden.npz",
    "labels.txt",
    "manifest.json",
    "model.onnx",
    "preprocessing.json",
)


def export_onnx(run, folder, inputs_NCHW, *, overwrite=False):
    evidence = Evidence(images_NCHW=inputs_NCHW, targets_N=None, source="a test")
    return export(run, ONNX, folder, evidence, overwrite=overwrite).parity


def inputs_of(run, limit):
    return find_evidence(run, limit=limit).images_NCHW


def untrained_run(folder, spec, classes=3):
    """A run whose batch norm has seen something, so that folding it matters."""
    channels = {1: "L", 3: "RGB", 4: "RGBA"}[spec.input_channels]
    half = (0.5,) * spec.input_channels
    preprocessing = Preprocessing(spec.height, spec.across, channels, mean=half, std=half)
    task = CLASSIFICATION([f"class {index}" for index in range(classes)], preprocessing)
    run = Run.create(folder, task, spec, CLASSIFICATION.recipes()["cifar"], {"where": "nowhere"})
    model = create_model(spec, classes)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
    write_weights(folder / "model.safetensors", model.state_dict())
    return run


@pytest.mark.parametrize(
    "spec",
    [
        # Case 5: SAME padding differs between even and odd sides.
        MobileNetSpec(0.25, 224, padding="tensorflow", activation="relu6"),
        # Case 11: one and four channels, a width that rounds, a shape that is not square.
        MobileNetSpec(0.25, 97, padding="tensorflow", input_channels=1),
        MobileNetSpec(0.25, 97, padding="keras", activation="leaky", input_channels=4),
        MobileNetSpec(0.35, (97, 161)),
        MobileNetSpec(0.25, 32, variant="fullconv"),
        MobileNetSpec(0.25, 32, variant="shallow", total_stride=8),
    ],
    ids=str,
)
def test_parity_for_odd_specifications(tmp_path, spec):
    run = untrained_run(tmp_path / "run", spec)
    inputs = torch.rand(3, spec.input_channels, spec.height, spec.across) * 2 - 1
    parity = export_onnx(run, tmp_path / "onnx", inputs)
    assert parity.holds
    assert parity.images == 3
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == sorted(FILES)


def test_bundle_can_be_used_without_this_library(exported):
    run, bundle = Run.load(exported), exported / "onnx"
    golden = np.load(bundle / "golden.npz")
    assert np.allclose(
        OnnxModel(bundle / "model.onnx").run(golden["input"]), golden["output"], atol=1e-4
    )
    assert (bundle / "labels.txt").read_text().split() == list(run.labels)
    stored = json.loads((bundle / "preprocessing.json").read_text())
    assert str(Path(torch.__file__).parent) not in (bundle / "model.onnx").read_bytes().decode(
        "latin-1"
    )
    assert Preprocessing.from_dict(stored) == run.preprocessing
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert (manifest["parity"]["images"], manifest["parity"]["holds"]) == (143, True)
    assert (manifest["model"], manifest["labels"]) == ("0.25-16-s8", 10)
    assert manifest["bytes"] == (bundle / "model.onnx").stat().st_size


def test_any_batch_size_gives_as_many_results(exported):
    inputs = inputs_of(Run.load(exported), 5)
    model = OnnxModel(exported / "onnx" / "model.onnx", threads=1)
    for size in (1, 3, 5):
        assert model.run(inputs[:size].numpy()).shape == (size, 10)


def test_file_that_disagrees_is_not_left_behind(digits_run, tmp_path, monkeypatch):
    run = Run.load(digits_run)

    def spoiled(model):
        folded = fold_batch_norm(model)
        with torch.no_grad():
            folded.classifier.bias[0] += 1
        return folded

    monkeypatch.setattr("mobilenets.deploy.exportable.fold_batch_norm", spoiled)
    with pytest.raises(ValueError, match="computes something else and was not kept: largest"):
        export_onnx(run, tmp_path / "onnx", inputs_of(run, 8))
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_survives_a_failed_one(digits_run, tmp_path, monkeypatch):
    run = Run.load(digits_run)
    inputs = inputs_of(run, 4)
    export_onnx(run, tmp_path, inputs)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    monkeypatch.setattr("mobilenets.runtimes.onnx.OnnxModel", _no_runtime)
    with pytest.raises(RuntimeError):
        export_onnx(run, tmp_path, inputs, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def _no_runtime(path, threads):
    raise RuntimeError("no runtime")


def test_no_images_is_said(digits_run, tmp_path):
    run = Run.load(digits_run)
    with pytest.raises(ValueError, match="no images to compare"):
        export_onnx(run, tmp_path, inputs_of(run, 1)[:0])


A = np.array([[1.0, 2.0], [3.0, 1.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("other", "holds"),
    [
        (A, True),
        (A + 0.002, True),
        # Over 1e-3 of the largest value.
        (A + 0.004, False),
        # Top-1 differs though the values are near.
        (np.array([[2.0, 2.0], [3.0, 1.0]], dtype=np.float32), False),
        # A value that is no number is never equal.
        (np.array([[np.nan, 2.0], [3.0, 1.0]], dtype=np.float32), False),
    ],
)
def test_what_counts_as_equal(other, holds):
    assert compare(A, other).holds is holds
