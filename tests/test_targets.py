"""Every runtime that a run is exported for: equal on odd networks, int8 in truth, usable without this library."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import train_digits
from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.cli.main import run as cli
from mobilenets.cli.several import SEVERAL
from mobilenets.deploy.bundle import Quantisation, export
from mobilenets.deploy.equalise import room_for_biases
from mobilenets.deploy.evidence import Evidence, find_calibration, find_evidence
from mobilenets.deploy.exportable import Exportable, Int8
from mobilenets.deploy.peers import PEERS
from mobilenets.deploy.simulate import decibels
from mobilenets.deploy.target import TARGETS
from mobilenets.runtimes.model import RUNTIMES
from mobilenets.training.run import Run
from test_cli import make_folder, train_arguments
from test_export import untrained_run

EXECUTED = ["litert", "executorch", "openvino", "pt2"]


@pytest.fixture(params=EXECUTED)
def target(request):
    found = TARGETS[request.param]
    if not all(find_spec(package) for package in found.packages):
        pytest.skip(f"needs pip install 'mobilenets[{found.extra}]'")
    return found


def random_images(spec, count=3):
    coarse = torch.rand(
        count, spec.input_channels, 4, 4, generator=torch.Generator().manual_seed(0)
    )
    images = torch.nn.functional.interpolate(
        coarse * 2 - 1, (spec.height, spec.across), mode="bilinear"
    )
    return Evidence(images_NCHW=images, targets_N=None, source="noise")


ODD = [
    # Sides and a width that are no multiples of anything, padded as TensorFlow does, and one channel.
    MobileNetSpec(0.35, (97, 161), padding="tensorflow", activation="relu6", input_channels=1),
    pytest.param(MobileNetSpec(0.25, 32, variant="fullconv"), marks=pytest.mark.slow),
    pytest.param(
        MobileNetSpec(0.25, 97, padding="keras", activation="leaky"), marks=pytest.mark.slow
    ),
    pytest.param(
        MobileNetSpec(0.5, 32, variant="shallow", total_stride=8, input_channels=4),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("spec", ODD, ids=str)
def test_odd_networks_are_equal(tmp_path, target, spec):
    run = untrained_run(tmp_path / "run", spec)
    bundle = export(run, target, tmp_path / "bundle", random_images(spec))
    assert bundle.parity.holds
    assert bundle.file.is_file()
    model = target.open(bundle.file, 1)
    assert model.input_shape == (spec.input_channels, spec.height, spec.across)
    # Any number of images, and one.
    golden = np.load(tmp_path / "bundle" / "golden.npz")
    assert np.allclose(model.run(golden["input"]), golden["output"], rtol=1e-3, atol=1e-4)


def stored_types(path):
    """What kinds of numbers a file's constants are."""
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
        kinds = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
        return {
            np.dtype(kinds[operator["inputs"][1]]).name
            for operator in interpreter._get_ops_details()
            if operator["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        }
    if path.suffix == ".xml":
        from mobilenets.runtimes.openvino import import_openvino

        graph = import_openvino().Core().read_model(path)
        return {
            node.get_element_type().get_type_name()
            for node in graph.get_ops()
            if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) == 4
            if np.prod(node.get_output_shape(0)) > 1000
        }
    program = torch.export.load(path)
    return {str(tensor.dtype) for tensor in program.state_dict.values() if tensor.dim() > 1}


INT8_TYPES = {"litert": {"int8"}, "openvino": {"i8"}, "pt2": {"torch.int8"}}


@pytest.fixture(scope="module")
def taught_run(tmp_path_factory):
    """Handwritten digits, learnt until a rounding changes no answer."""
    return train_digits(tmp_path_factory.mktemp("runs") / "taught", epochs=12)


@pytest.fixture(scope="module")
def in_floats(taught_run, tmp_path_factory):
    """Each file of the digits once, for all who look at it."""

    @cache
    def find(name):
        run = Run.load(taught_run)
        return export(run, TARGETS[name], tmp_path_factory.mktemp(name) / "a", find_evidence(run))

    return find


def test_int8_is_int8_and_loses_nothing(taught_run, in_floats, tmp_path, target):
    run = Run.load(taught_run)
    evidence = find_evidence(run)
    how = Quantisation(calibration_NCHW=find_calibration(run))
    bundle = export(run, target, tmp_path / "int8", evidence, how)
    assert bundle.manifest["precision"] == "int8"
    assert bundle.manifest["lost"] <= 1
    assert len(bundle.manifest["float_layers"]) <= 2
    assert bundle.parity.top1_agreement > 0.95
    whole = in_floats(target.name)
    if target.name in INT8_TYPES:
        kept = {"float32", "f32", "torch.float32"} if bundle.manifest["float_layers"] else set()
        assert stored_types(bundle.file) - kept == INT8_TYPES[target.name]
    assert bundle.manifest["bytes"] < 0.8 * whole.manifest["bytes"]


def test_channels_that_training_switched_off_do_not_overflow(tmp_path, target):
    """Weights next to nothing and a bias: its multiple of their scale is more than 32 bits hold."""
    spec = MobileNetSpec(0.25, 32, total_stride=8)
    torch.manual_seed(0)
    made = MobileNet(spec, 5).eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight[::4], module.bias[::4] = 1e-9, 2.0
                module.weight[1::8], module.bias[1::8] = 0.0, 1.0
    images_NCHW = random_images(spec, 24).images_NCHW
    model = Exportable.of_network(made, spec)
    roomy = model.with_network(room_for_biases(model.network, images_NCHW))
    with torch.inference_mode():
        whole = model.network(images_NCHW)
        assert decibels(whole, roomy.network(images_NCHW)) > 80
    file = tmp_path / target.file
    target.write(roomy.quantised(Int8(images_NCHW=images_NCHW)), file)
    outputs = torch.from_numpy(target.open(file, 1).run(images_NCHW.numpy()))
    assert decibels(whole, outputs) > 25


def test_labels_and_normalisation_are_in_the_tflite_file(taught_run, in_floats):
    tasks = pytest.importorskip("mediapipe.tasks.python")
    import mediapipe
    from mediapipe.tasks.python import vision

    run, bundle = Run.load(taught_run), in_floats("litert")
    evidence = find_evidence(run, limit=8)
    with zipfile.ZipFile(io.BytesIO(bundle.file.read_bytes())) as archive:
        assert archive.read("labels.txt").decode().split() == list(run.labels)
    # The task library of Android's and iOS' apps prepares the picture by itself.
    options = vision.ImageClassifierOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(bundle.file)), max_results=1
    )
    pixels = ((evidence.images_NCHW[0] * 0.5 + 0.5) * 255).round().to(torch.uint8)
    picture = mediapipe.Image(
        image_format=mediapipe.ImageFormat.SRGB,
        data=np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()),
    )
    with vision.ImageClassifier.create_from_options(options) as classifier:
        (best,) = classifier.classify(picture).classifications[0].categories
    outputs = run.outputs(evidence.images_NCHW[:1])
    assert best.category_name == run.labels[int(outputs.argmax())]
    assert best.score == pytest.approx(float(outputs.max()), rel=1e-2)


def test_normalisation_is_in_the_core_ml_package(digits_run, tmp_path):
    coremltools = pytest.importorskip("coremltools")
    run = Run.load(digits_run)
    evidence = find_evidence(run, limit=8)
    bundle = export(run, TARGETS["coreml"], tmp_path / "apple", evidence)
    assert (bundle.parity, bundle.manifest["parity"]) == (None, None)
    assert "was not compared with the run" in (tmp_path / "apple" / "README.md").read_text()
    spec = coremltools.utils.load_spec(str(bundle.file))
    (picture,) = spec.description.input
    assert picture.type.WhichOneof("Type") == "imageType"
    assert (picture.type.imageType.width, picture.type.imageType.height) == (16, 16)
    assert list(spec.description.predictedFeatureName) or spec.description.predictedFeatureName
    program = spec.mlProgram.functions["main"]
    (block,) = program.block_specializations.values()
    kinds = [operation.type for operation in block.operations]
    # Mean and deviation come first, softmax and labels last.
    first = [kind for kind in kinds if kind != "const"][:2]
    assert first == ["sub", "real_div"] or first == ["sub", "mul"]
    assert {"softmax", "classify"} <= set(kinds)
    assert kinds.count("conv") == 27


@pytest.mark.parametrize("name", ["onnx", *EXECUTED])
def test_the_python_of_a_readme_runs(in_floats, name):
    target = TARGETS[name]
    if not all(find_spec(package) for package in target.packages):
        pytest.skip(f"needs pip install 'mobilenets[{target.extra}]'")
    folder = in_floats(name).folder
    text = (folder / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    label, difference = done.stdout.split()[-2:]
    golden = np.load(folder / "golden.npz")
    labels = (folder / "labels.txt").read_text().splitlines()
    assert label == labels[int(golden["output"].argmax())]
    assert float(difference) < 1e-3


def test_several_at_once(digits_run, tmp_path, capsys):
    asked = ["export", str(digits_run), "--to", "onnx", "pt2", "--json"]
    assert cli([*asked, "--output", str(tmp_path / "all")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["target"] for row in rows] == ["onnx", "pt2"]
    assert [Path(row["file"]).is_file() for row in rows] == [True, True]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["onnx", "pt2"]


def test_a_missing_extra_says_how_to_install_it(digits_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mobilenets.deploy.target.find_spec", lambda name: None)
    asked = ["export", str(digits_run), "--to", "litert", "--output", str(tmp_path / "out")]
    assert cli(asked) == 2
    said = capsys.readouterr().err
    assert said == "mobilenets: exporting to litert needs more: pip install 'mobilenets[litert]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--to", "tensorrt"], "unknown target 'tensorrt': the targets are onnx, litert"),
        (["--calibrate", "x"], "--calibrate, --max-loss and --per-tensor are for --int8"),
        (["--images", "x", "--data", "y"], "give --images or --data, not both"),
        (["--images", "nowhere"], "nowhere"),
        (["--data", "nowhere"], "nowhere"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_wrong_input_is_one_sentence(digits_run, tmp_path, capsys, asked, says):
    output = tmp_path / "out"
    assert cli(["export", str(digits_run), "--output", str(output), *asked]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


# The one that is written soonest, where it does not matter which.
QUICK = ["--to", "pt2"]


def test_a_folder_of_something_else_is_not_replaced(digits_run, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    asked = ["export", str(digits_run), *QUICK, "--output", str(tmp_path), "--overwrite"]
    assert cli(asked) == 2
    assert "is not empty and holds no export" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    # Nor an export in which someone else works.
    bundle = tmp_path / "bundle"
    asked = ["export", str(digits_run), *QUICK, "--output", str(bundle), "--overwrite"]
    assert cli(asked) == 0
    assert cli(asked) == 0
    (bundle / "App.kt").write_text("fun main() {}")
    capsys.readouterr()
    assert cli(asked) == 2
    assert "holds App.kt besides an export" in capsys.readouterr().err


def test_an_export_that_can_not_be_put_in_place_leaves_the_one_before(
    digits_run, tmp_path, monkeypatch
):
    bundle = tmp_path / "bundle"
    asked = ["export", str(digits_run), *QUICK, "--output", str(bundle), "--overwrite"]
    assert cli(asked) == 0
    before = (bundle / "manifest.json").stat().st_ino
    rename = Path.rename

    def fails(self, other):
        if self.name == "whole":
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fails)
    assert cli(asked) == 2
    assert (bundle / "manifest.json").stat().st_ino == before


def test_where_one_stands_and_through_a_link(digits_run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    assert cli(["export", str(digits_run), *QUICK, "--output", "."]) == 0
    assert cli(["export", str(digits_run), *QUICK, "--output", str(tmp_path / "link")]) == 0
    assert (tmp_path / "here" / "model.pt2").is_file()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "model.pt2").is_file()


def test_a_run_of_a_plain_folder_is_calibrated_on_what_it_was_taught(tmp_path):
    data = make_folder(tmp_path / "photos", splits=(".",), images=20)
    random = np.random.default_rng(0)
    for file in data.rglob("*.png"):
        Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file)
    assert cli(train_arguments(data, tmp_path / "run")) == 0
    run = Run.load(tmp_path / "run")
    judged, calibration = find_evidence(run).images_NCHW, find_calibration(run)
    assert len(judged) + len(calibration) == 40
    shared = (calibration[:, None] == judged[None]).flatten(2).all(2).any()
    assert not shared


def test_outputs_without_a_class_have_a_label(tmp_path):
    # The article's recipe has a thousand outputs for ten classes.
    spec = MobileNetSpec(0.25, 32)
    run = untrained_run(tmp_path / "run", spec, classes=3)
    run.model.classifier = torch.nn.Linear(run.model.feature_channels, 5)
    bundle = export(run, TARGETS["pt2"], tmp_path / "bundle", random_images(spec))
    labels = (tmp_path / "bundle" / "labels.txt").read_text().splitlines()
    assert labels == ["class 0", "class 1", "class 2", "unused 3", "unused 4"]
    assert bundle.manifest["labels"] == 5


def test_an_interrupted_export_leaves_nothing(digits_run, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("mobilenets.deploy.bundle.sha256", interrupt)
    assert cli(["export", str(digits_run), *QUICK, "--output", str(tmp_path / "out")]) != 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(digits_run, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        assert cli(["export", str(digits_run), "--output", str(disk / "out")]) == 2
        assert "no space left on the disk" in capsys.readouterr().err
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_layer_where_a_file_departs_is_named(digits_run, tmp_path, monkeypatch):
    run = Run.load(digits_run)
    plain = TARGETS["pt2"].write

    def spoilt(self, model, path):
        """A converter that gets one layer wrong."""
        modules = dict(model.network.named_modules())
        names = [name for name in modules if name.endswith("block3.depthwise.conv")]
        # Parts of the network number their layers.
        names += ["steps.5.conv"] if "steps.5.conv" in modules else []
        for name in names:
            with torch.no_grad():
                modules[name].weight.mul_(1.5)
        plain(model, path)
        for name in names:
            with torch.no_grad():
                modules[name].weight.div_(1.5)

    monkeypatch.setattr("mobilenets.deploy.target.Target.write", spoilt)
    with pytest.raises(ValueError, match=r"it departs at block3\.depthwise"):
        export(run, TARGETS["pt2"], tmp_path / "out", find_evidence(run, limit=8))
    assert not list(tmp_path.iterdir())


WATCHED = """
import sys
seen = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        seen.append(str(arguments[-2:]))
sys.addaudithook(watch)
from mobilenets.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write("seen: " + repr(seen))
sys.exit(code)
"""


def test_telemetry_is_off(taught_run, tmp_path):
    # In a process without pytest or CI, where NNCF would be still by itself, and with nobody's consent.
    if not find_spec("openvino"):
        pytest.skip("needs pip install 'mobilenets[openvino]'")
    outside = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCHED, "export", str(taught_run), "--to", "openvino",
         "--int8", "--limit", "16", "--max-loss", "100", "--output", str(tmp_path / "out")],
        env=outside | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("seen: []")
    assert not (tmp_path / "intel").exists()


def test_every_runtime_reads_what_is_no_model(tmp_path):
    for runtime in RUNTIMES:
        if not runtime.installed:
            continue
        path = tmp_path / f"model{runtime.suffix}"
        path.write_bytes(b"no model" * 100)
        with pytest.raises(ValueError, match=r"not a (model|program) that"):
            runtime.open(path, 1)


class Attack:
    """What unpickling it would do."""

    def __reduce__(self):
        return os.mkdir, ("attacked",)


def poisoned(files):
    """A program's archive with something else than tensors in it, in each place where PyTorch unpickles."""
    (weights,) = (name for name in files if name.endswith("weights_config.json"))
    (constants,) = (name for name in files if name.endswith("constants_config.json"))
    (inputs,) = (name for name in files if "sample_inputs" in name)
    place = weights.rpartition("/")[0]
    attack = io.BytesIO()
    torch.save(Attack(), attack)
    (graph,) = (name for name in files if "/models/" in name)
    evaluated = files[graph].replace(b"Symbol('", b"__import__('os').mkdir('attacked') or Symbol('")
    config = json.loads(files[weights])
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    pickled = {weights: json.dumps(config), f"{place}/{entry['path_name']}": attack.getvalue()}
    opaque = {"a": {**entry, "path_name": "opaque_obj_0", "use_pickle": False}}
    return [
        {inputs: attack.getvalue()},
        pickled,
        {
            constants: json.dumps({"config": opaque}),
            f"{constants.rpartition('/')[0]}/opaque_obj_0": pickle.dumps(Attack()),
        },
        {f"{place}/model.pt": attack.getvalue()},
        {graph: evaluated},
        {f"{place.removesuffix('weights')}aotinductor/model/a.so": b"library"},
        {inputs.upper(): files[inputs]},
    ]


def test_a_stranger_s_program_runs_no_code(in_floats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(in_floats("pt2").file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for number, changed in enumerate(poisoned(files)):
        path = tmp_path / f"{number}.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (files | changed).items():
                archive.writestr(name, content)
        with pytest.raises(ValueError, match=r"not a program that PyTorch reads"):
            TARGETS["pt2"].open(path)
    assert not (tmp_path / "attacked").exists()


def test_options_of_several_values_know_the_same_names():
    # The command line can't import these tables at every start.
    assert SEVERAL["--to"] == tuple(TARGETS)
    assert SEVERAL["--against"] == tuple(PEERS)
    assert SEVERAL["--runtime"] == ("torch", *(runtime.name for runtime in RUNTIMES))
