"""Detectors for other runtimes: the same boxes in floats, as precise in int8, any number of images."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets.architecture.detector import parse_spec
from mobilenets.cli.main import run as cli
from mobilenets.data.boxes import open_boxes
from mobilenets.deploy.bundle import Quantisation, export
from mobilenets.deploy.equalise import equalise, room_for_biases
from mobilenets.deploy.evidence import find_calibration, find_evidence
from mobilenets.deploy.exportable import Exportable, Int8, steps_of
from mobilenets.deploy.predictor import find_engine
from mobilenets.deploy.simulate import Simulation, decibels
from mobilenets.deploy.target import TARGETS
from mobilenets.tasks.detection.boxes import Objects
from mobilenets.tasks.detection.file import compare_objects
from mobilenets.training.run import Run

EXECUTED = ["onnx", "litert", "executorch", "openvino", "pt2"]
SELECTING = ["onnx", "litert", "openvino"]


@pytest.fixture(params=EXECUTED)
def target(request):
    return _installed(request.param)


# Each quantiser writes a detector below, to show which layers it left alone.
@pytest.fixture(
    params=[
        "onnx",
        "litert",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("executorch", "openvino", "pt2")),
    ]
)
def quantised_target(request):
    return _installed(request.param)


def _installed(name):
    found = TARGETS[name]
    if not all(find_spec(package) for package in found.packages):
        pytest.skip(f"needs pip install 'mobilenets[{found.extra}]'")
    return found


@pytest.fixture(scope="module")
def exported(shapes_run, tmp_path_factory):
    """Each file once, for all who look at it."""
    made = {}

    def find(target, raw):
        if raw and target.name not in SELECTING:
            pytest.skip("raw is all that it gives")
        if (target.name, raw) not in made:
            run = Run.load(shapes_run)
            folder = tmp_path_factory.mktemp("bundles") / "bundle"
            made[target.name, raw] = export(run, target, folder, find_evidence(run), raw=raw)
        return made[target.name, raw]

    return find


@pytest.mark.parametrize("raw", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_file_finds_what_the_run_finds(shapes_run, exported, target, raw):
    run, bundle = Run.load(shapes_run), exported(target, raw)
    evidence = find_evidence(run)
    assert bundle.parity.holds
    assert bundle.parity.boxes >= 15
    figures = bundle.manifest["map"]
    assert figures["file"] == pytest.approx(figures["fp32"], abs=0.01)
    selects = target.name in SELECTING and not raw
    assert bundle.manifest["form"] == ("found" if selects else "boxes")
    # Any number of images, and each as alone.
    model = target.open(bundle.file, 1)
    images = evidence.images_NCHW[:3].contiguous().numpy()
    together = model.run(images)
    assert together.shape == (3, 100, 6) if selects else (3, len(run.task._boxes_A4), 6)
    for place in range(3):
        assert np.allclose(together[place], model.run(images[place : place + 1])[0], atol=1e-4)
    golden = np.load(bundle.folder / "golden.npz")
    assert np.allclose(model.run(golden["input"]), golden["output"], atol=2e-3)


def test_int8_is_as_precise(shapes_run, exported, tmp_path, quantised_target):
    run, target = Run.load(shapes_run), quantised_target
    how = Quantisation(calibration_NCHW=find_calibration(run, limit=12), max_loss=3.0)
    bundle = export(run, target, tmp_path / "int8", find_evidence(run), how)
    assert bundle.manifest["lost"] <= 3
    assert bundle.parity.agreement > 0.9
    layers = json.loads((tmp_path / "int8" / "layers.json").read_text())
    assert [row["layer"] for row in layers] == list(steps_of(run.model).modules)
    whole = exported(target, raw=False)
    assert bundle.manifest["bytes"] < 0.8 * whole.manifest["bytes"]


def test_a_network_of_branches_computes_the_same_made_ready_for_int8(shapes_run):
    run = Run.load(shapes_run)
    model = Exportable.of_run(run)
    images = find_calibration(run, limit=12)
    ready = room_for_biases(equalise(model.network, images), images)
    with torch.inference_mode():
        expected, got = model.network(images), ready(images)
    assert torch.allclose(got, expected, atol=1e-4)
    simulation = Simulation(ready, images)
    assert decibels(expected, simulation.outputs(images, frozenset())) > 60
    assert 15 < decibels(expected, simulation.outputs(images, frozenset(simulation.layers))) < 60


def _sides(shape):
    """A weight's sides in whatever order a file keeps them."""
    return tuple(sorted(side for side in shape if side > 1))


def _float_weights(path):
    """The sides of the weights that a file keeps in float."""
    if path.suffix == ".onnx":
        import onnx

        kept = [one for one in onnx.load(path).graph.initializer if one.data_type == 1]
        return {_sides(one.dims) for one in kept}
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
        details = {one["index"]: one for one in interpreter.get_tensor_details()}
        weights = [
            details[operator["inputs"][1]]
            for operator in interpreter._get_ops_details()
            if operator["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D")
        ]
        return {_sides(one["shape"]) for one in weights if one["dtype"] == np.float32}
    if path.suffix == ".xml":
        from mobilenets.runtimes.openvino import import_openvino

        graph = import_openvino().Core().read_model(path)
        return {
            _sides(node.get_output_shape(0))
            for node in graph.get_ops()
            if node.get_type_name() == "Constant"
            and node.get_element_type().get_type_name() == "f32"
        }
    state = torch.export.load(path).state_dict
    return {_sides(one.shape) for one in state.values() if one.dtype == torch.float32}


def test_the_layers_that_stay_in_float_are_those_that_were_meant(shapes_run, tmp_path, target):
    if target.name == "executorch":
        pytest.skip("its files can't be looked into; it is quantised as pt2 is")
    model = Exportable.of_run(Run.load(shapes_run))
    images = find_calibration(Run.load(shapes_run), limit=12)
    sides = [
        _sides(getattr(step, "conv", step).weight.shape)
        for step in steps_of(model.network).modules.values()
    ]
    alone = [place for place, one in enumerate(sides) if sides.count(one) == 1]
    meant = {alone[0], alone[len(alone) // 2], alone[-2], alone[-1]}
    assert {place < 27 for place in meant} == {True, False}
    path = tmp_path / target.file
    target.write(model.quantised(Int8(images_NCHW=images, keep=frozenset(meant))), path)
    assert _float_weights(path) & set(sides) == {sides[place] for place in meant}


@pytest.mark.parametrize(
    "name", ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in EXECUTED[1:])]
)
def test_predictions_go_through_the_file(shapes, shapes_run, tmp_path, capsys, name):
    target = _installed(name)
    run = Run.load(shapes_run)
    part = open_boxes(shapes).splits["val"]
    copy = tmp_path / "run"
    copy.mkdir()
    for file in ("config.json", "model.safetensors"):
        (copy / file).write_bytes((shapes_run / file).read_bytes())
    assert cli(["export", str(copy), "--to", name]) == 0
    opened = Run.load(copy)
    engine = find_engine(opened, target.runtime)
    paths = [str(path) for path in part.images.paths[:4]]
    told = {}
    for runtime in ("torch", engine.runtime):
        capsys.readouterr()
        assert cli(["predict", str(copy), *paths, "--runtime", runtime, "--json"]) == 0
        told[runtime] = json.loads(capsys.readouterr().out)
    for mine, theirs in zip(*told.values(), strict=True):
        assert [found["label"] for found in mine["predictions"]] == [
            found["label"] for found in theirs["predictions"]
        ]
        for one, other in zip(mine["predictions"], theirs["predictions"], strict=True):
            assert one["box"] == pytest.approx(other["box"], abs=2e-3)
    assert run.labels == opened.labels


# One file that selects its boxes, one that gives them all; the others say the same in their own words.
@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("onnx", False),
        ("pt2", False),
        *(
            pytest.param(name, raw, marks=pytest.mark.slow)
            for name, raw in [
                *((name, False) for name in ("litert", "executorch", "openvino")),
                *((name, True) for name in SELECTING),
            ]
        ),
    ],
)
def test_the_python_of_a_readme_runs(exported, name, raw):
    folder = exported(_installed(name), raw).folder
    text = (folder / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert told
    assert told <= {"disc", "square"} | {word for word in told if word[0] in "[0123456789"}


def test_mediapipe_finds_boxes_labels_and_normalisation(shapes, shapes_run, exported):
    target = _installed("litert")
    tasks = pytest.importorskip("mediapipe.tasks.python")
    import mediapipe

    run = Run.load(shapes_run)
    bundle = exported(target, raw=False)
    options = tasks.vision.ObjectDetectorOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(bundle.file)), score_threshold=0.5
    )
    path = open_boxes(shapes).splits["val"].images.paths[0]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
    with tasks.vision.ObjectDetector.create_from_options(options) as detector:
        found = detector.detect(picture).detections
    mine = run.predict(path).objects
    assert sorted(thing.categories[0].category_name for thing in found) == sorted(
        thing.label for thing in mine
    )
    best = max(found, key=lambda thing: thing.categories[0].score)
    sides = (
        best.bounding_box.origin_x,
        best.bounding_box.origin_y,
        best.bounding_box.origin_x + best.bounding_box.width,
        best.bounding_box.origin_y + best.bounding_box.height,
    )
    assert sides == pytest.approx([96 * side for side in mine[0].box], abs=3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--int8", "--max-loss", "0", "--calibrate", "NOISE"], "points of mAP on"),
    ],
)
def test_the_gate_is_on_map(shapes_run, tmp_path, capsys, arguments, says):
    noise = tmp_path / "noise"
    noise.mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        dark = random.integers(0, 3, (96, 96, 3), dtype=np.uint8) * 127
        Image.fromarray(dark // 40).save(noise / f"{number}.png")
    arguments = [str(noise) if word == "NOISE" else word for word in arguments]
    assert cli(["export", str(shapes_run), *arguments, "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_exported_says_so(shapes, tmp_path, capsys):
    command = ["train", str(shapes), "--task", "detection", "--epochs", "1", "--device", "cpu"]
    assert cli([*command, "--model", "frcnn64/0.25", "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert cli(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 2
    assert "train ssd300 for them" in capsys.readouterr().err
    assert cli(["quantise", str(tmp_path / "run"), "--output", str(tmp_path / "q")]) == 2


@pytest.mark.slow
def test_a_pyramid_goes_in_floats(shapes, tmp_path, capsys):
    command = ["train", str(shapes), "--task", "detection", "--epochs", "1", "--device", "cpu"]
    assert cli([*command, "--model", "ssdfpn64/0.25", "--output", str(tmp_path / "run")]) == 0
    assert cli(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert cli(["export", str(tmp_path / "run"), "--int8", "--output", str(tmp_path / "8")]) == 2
    assert "export it in floats" in capsys.readouterr().err


def test_boxes_are_compared_by_class_place_and_score():
    def objects(*rows):
        values = torch.tensor(rows).view(-1, 6)
        return [Objects(values[:, :4], values[:, 4], values[:, 5].long())]

    box, other = (0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.49)
    told = objects([*box, 0.9, 0], [0.6, 0.6, 0.9, 0.9, 0.2, 1])
    same = compare_objects(told, objects([*other, 0.895, 0]))
    assert (same.boxes, same.agreement) == (2, 1.0)
    assert same.least_overlap == pytest.approx(0.975, abs=1e-3)
    assert same.largest_difference == pytest.approx(0.005, abs=1e-5)
    assert not same.holds
    assert compare_objects(told, told).holds
    for wrong in ([*box, 0.9, 1], [0.5, 0.5, 0.9, 0.9, 0.9, 0]):
        assert compare_objects(told, objects(wrong)).agreement == 0
    # What only one of them finds counts, whichever it is.
    assert compare_objects(objects(), objects([*box, 0.9, 0])).agreement == 0
    assert compare_objects(objects([*box, 0.9, 0]), objects()).agreement == 0
    assert compare_objects(objects(), objects()).agreement == 1
    # Where nothing is sure, the best is what counts.
    weak = compare_objects(objects([*box, 0.1, 0]), objects([*box, 0.09, 0]))
    assert (weak.boxes, weak.agreement) == (2, 1.0)
    assert parse_spec("ssd96/0.25").framework == "ssd"
