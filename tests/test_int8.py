"""Int8 that keeps what float knew: ranges made alike, errors by layer, a gate, a rescue."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.cli.main import run as cli
from mobilenets.deploy.bundle import Quantisation, export
from mobilenets.deploy.equalise import equalise
from mobilenets.deploy.evidence import find_calibration, find_evidence
from mobilenets.deploy.exportable import Exportable, Int8, steps_of
from mobilenets.deploy.simulate import Simulation, decibels, shift_biases
from mobilenets.deploy.target import TARGETS
from mobilenets.training.run import Run

ONNX = TARGETS["onnx"]


def network(activation="relu", seed=0, spread=1.5):
    """A network whose channels differ much, as trained ones do."""
    torch.manual_seed(seed)
    made = MobileNet(MobileNetSpec(0.25, 32, total_stride=8, activation=activation), 5).eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(torch.exp(spread * torch.randn(module.num_features)))
                module.bias.normal_(std=0.5)
    return made


@pytest.fixture
def images():
    coarse = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, 32, mode="bilinear")


def exportable(made):
    return Exportable.of_network(made, made.spec)


@pytest.mark.parametrize(
    ("activation", "changed"), [("relu", True), ("leaky", True), ("relu6", False)]
)
def test_channels_of_like_ranges_compute_the_same(images, activation, changed):
    model = exportable(network(activation)).network
    equal = equalise(model, images)
    with torch.inference_mode():
        before, after = model(images), equal(images)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    # ReLU6 does not pass a factor through.
    assert (not equal.body["conv0"].conv.weight.equal(model.body["conv0"].conv.weight)) is changed


def test_like_ranges_take_noise_away(images):
    model = exportable(network("leaky", spread=1.0)).network
    signal = []
    for made in (model, equalise(model, images)):
        simulation = Simulation(made, images)
        whole = simulation.outputs(images, frozenset())
        rounded = simulation.outputs(images, frozenset(simulation.layers))
        signal.append(decibels(whole, rounded))
    assert signal[1] > signal[0] + 2


def test_corrected_biases_keep_the_mean(images):
    model = exportable(network(spread=0.5)).network
    simulation = Simulation(model, images)
    everything = frozenset(simulation.layers)
    shifts = simulation.bias_corrections(images, everything)
    assert list(shifts) == simulation.layers
    corrected = Simulation(shift_biases(model, shifts), images)

    def mean(simulation, quantised):
        return simulation.outputs(images, quantised).mean(0)

    wanted = mean(simulation, frozenset())
    off = (mean(simulation, everything) - wanted).abs().max()
    assert (mean(corrected, everything) - wanted).abs().max() < 0.5 * off
    # The network that was given is as it was.
    assert mean(Simulation(model, images), frozenset()).equal(wanted)


def test_the_simulation_foretells_what_a_runtime_computes(images, tmp_path):
    model = exportable(network("relu", spread=0.5))
    with torch.inference_mode():
        whole = model.network(images)
    simulation = Simulation(model.network, images)
    foretold = simulation.outputs(images, frozenset(simulation.layers))
    ONNX.write(model.quantised(Int8(images_NCHW=images)), tmp_path / "a.onnx")
    got = torch.from_numpy(ONNX.open(tmp_path / "a.onnx", 1).run(images.numpy()))
    assert decibels(whole, got) == pytest.approx(decibels(whole, foretold), abs=3)


@pytest.mark.parametrize("name", ["onnx", "litert", "executorch"])
def test_what_stays_in_float_keeps_its_activation(images, tmp_path, name):
    target = TARGETS[name]
    if not all(find_spec(package) for package in target.packages):
        pytest.skip(f"needs pip install 'mobilenets[{target.extra}]'")
    model = exportable(network("leaky", spread=1.0))
    with torch.inference_mode():
        whole = model.network(images)
    simulation = Simulation(model.network, images)
    rounded = frozenset(simulation.layers[24:])
    foretold = decibels(whole, simulation.outputs(images, rounded))
    assert foretold > decibels(whole, simulation.outputs(images, frozenset(simulation.layers))) + 3
    int8 = Int8(images_NCHW=images, keep=frozenset(range(24)))
    path = tmp_path / target.file
    target.write(model.quantised(int8), path)
    got = torch.from_numpy(target.open(path, 1).run(images.numpy()))
    # LiteRT rounds what is averaged over the last map too.
    assert decibels(whole, got) > foretold - 5


def types_of(path):
    """How many weights of convolutions a file holds in which type."""
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    read = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    found = {"int8": 0, "float": 0}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            source = read.get(node.input[1])
            kind = stored[source.input[0] if source else node.input[1]].data_type
            found["int8" if kind == onnx.TensorProto.INT8 else "float"] += 1
    return found


@pytest.mark.parametrize(
    ("keep", "floats"), [((), 0), pytest.param((0,), 1, marks=pytest.mark.slow), ((3, 27), 2)]
)
def test_an_int8_file_holds_int8(images, tmp_path, keep, floats):
    model = exportable(network())
    ONNX.write(model.quantised(Int8(images_NCHW=images, keep=frozenset(keep))), tmp_path / "a.onnx")
    assert types_of(tmp_path / "a.onnx") == {"int8": 28 - floats, "float": floats}
    ONNX.write(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").stat().st_size < 0.6 * (tmp_path / "b.onnx").stat().st_size


def digits(run):
    evidence = find_evidence(run, limit=143)
    return evidence, Quantisation(calibration_NCHW=find_calibration(run))


@pytest.fixture(scope="module")
def bundle(digits_run, tmp_path_factory):
    """The digits in int8."""
    run = Run.load(digits_run)
    return export(run, ONNX, tmp_path_factory.mktemp("bundle") / "int8", *digits(run))


def test_a_trained_run_loses_next_to_nothing(digits_run, bundle):
    run = Run.load(digits_run)
    evidence, _ = digits(run)
    assert bundle.manifest["float_layers"] == []
    assert bundle.manifest["lost"] <= 1
    assert bundle.manifest["top1"]["fp32"] == evidence.figure(
        run.task, run.outputs(evidence.images_NCHW).numpy()
    )
    assert types_of(bundle.file) == {"int8": 28, "float": 0}
    layers = json.loads((bundle.folder / "layers.json").read_text())
    assert [row["layer"] for row in layers] == list(steps_of(run.model).modules)
    assert (bundle.folder / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "Precision: int8." in (bundle.folder / "README.md").read_text()


def test_the_gate_refuses_and_says_by_how_much(digits_run, tmp_path):
    run = Run.load(digits_run)
    evidence, how = digits(run)
    # Ranges from noise a hundred times too loud leave next to no levels for what is real.
    loud = replace(how, calibration_NCHW=100 * torch.randn_like(how.calibration_NCHW))
    with pytest.raises(
        ValueError, match=r"was not kept: it loses \d+\.\d\d points of top-1 on 143"
    ):
        export(run, ONNX, tmp_path / "int8", evidence, loud)
    assert not list(tmp_path.iterdir())


def test_the_worst_layers_stay_in_float_when_that_saves_the_gate(
    digits_run, bundle, tmp_path, monkeypatch
):
    run = Run.load(digits_run)
    evidence, how = digits(run)
    plain = ONNX.write
    asked = []

    def spoilt(self, model, path):
        """Int8 of one layer is broken here."""
        asked.append(sorted(model.int8.keep))
        if worst not in model.int8.keep:
            broken = steps_of(model.network).modules
            with torch.no_grad():
                list(broken.values())[worst].conv.bias.mul_(-3)
        plain(model, path)

    errors = json.loads((bundle.folder / "layers.json").read_text())
    worst = min(range(len(errors)), key=lambda number: errors[number]["alone"])
    monkeypatch.setattr("mobilenets.deploy.target.Target.write", spoilt)
    rescued = export(run, ONNX, tmp_path / "b", evidence, how)
    assert asked[0] == []
    assert len(asked) == 2
    assert errors[worst]["layer"] in rescued.manifest["float_layers"]
    assert types_of(rescued.file) == {"int8": 26, "float": 2}


def test_without_labels_first_guesses_are_what_may_change(digits_run, tmp_path):
    run = Run.load(digits_run)
    labelled, how = digits(run)
    evidence = replace(labelled, targets_N=None)
    manifest = export(run, ONNX, tmp_path / "int8", evidence, how).manifest
    changed = 100 * (1 - manifest["parity"]["top1_agreement"])
    assert manifest["lost"] == pytest.approx(changed)
    assert (manifest["max_loss"], manifest["top1"]) == (10, {"fp32": None, "file": None})
    loud = replace(how, calibration_NCHW=100 * torch.randn_like(how.calibration_NCHW))
    with pytest.raises(
        ValueError, match=r"was not kept: \d+\.\d\d % of first guesses change on 143"
    ):
        export(run, ONNX, tmp_path / "loud", evidence, loud)
    assert evidence.figure(run.task, np.eye(4, dtype=np.float32)) is None


@pytest.mark.parametrize(
    ("count", "colour", "says"),
    [
        (0, None, "no images in"),
        (3, None, "3 images are too few to take int8's ranges from"),
        (12, (9, 9, 9), "12 of 12 calibration images have one colour only"),
    ],
)
def test_calibration_that_says_nothing_is_one_sentence(
    digits_run, tmp_path, capsys, count, colour, says
):
    folder = tmp_path / "calibration"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels) if colour is None else Image.new("RGB", (20, 20), colour)
        picture.save(folder / f"{number}.png")
    output = tmp_path / "out"
    asked = [
        "export",
        str(digits_run),
        "--int8",
        "--calibrate",
        str(folder),
        "--output",
        str(output),
    ]
    assert cli(asked) == 2
    said = capsys.readouterr().err.splitlines()
    assert says in said[-1]
    assert not output.exists()
