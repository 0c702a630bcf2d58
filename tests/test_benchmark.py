"""Timing models in turns: rows that say what was measured, files of two runtimes, peers, energy, a picture."""

import json

import numpy as np
import pytest
import torch

from mobilenets.cli.main import run as cli
from mobilenets.deploy.energy import joules
from mobilenets.deploy.subjects import find_subjects
from mobilenets.runtimes.litert import LiteRtModel
from mobilenets.runtimes.model import runtime_of
from mobilenets.runtimes.onnx import OnnxModel
from mobilenets.weights.create import create_model

SMALL = "0.25-32-s8"


def rows(capsys, *arguments):
    assert cli(["benchmark", *map(str, arguments), "--seconds", "0", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_model_in_every_runtime_with_every_batch(digits_run, capsys):
    found = rows(
        capsys, SMALL, digits_run, "--runtime", "torch", "--runtime", "onnxruntime",
        "--batch", 1, "--batch", 3, "--threads", 1,
    )  # fmt: skip
    told = {(row["name"], row["runtime"], row["batch"], row["threads"]) for row in found}
    assert told == {
        (name, runtime, batch, 1)
        for name in (SMALL, digits_run.name)
        for runtime in ("torch", "onnxruntime")
        for batch in (1, 3)
    }
    for row in found:
        assert 0 < row["lower_ms"] <= row["median_ms"] <= row["upper_ms"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
        assert row["load_ms"] > 0
        assert row["calls"] >= 5
    # Each was loaded by a process of its own, and ONNX Runtime needs no PyTorch.
    peaks = {row["runtime"]: row["peak_mb"] for row in found}
    assert peaks["onnxruntime"] < 250 < peaks["torch"]
    # A run's accuracy is its own, and an unpublished name has none.
    accuracies = {row["name"]: row["top1"] for row in found}
    assert accuracies[SMALL] is None
    assert 0 < accuracies[digits_run.name] <= 100
    assert {row["bytes"] for row in found if row["runtime"] == "onnxruntime"}.isdisjoint({None})


def test_names_are_exported_for_every_runtime(capsys):
    found = rows(capsys, SMALL, "--runtime", "onnxruntime", "openvino", "pt2", "--threads", 1)
    assert [row["runtime"] for row in found] == ["onnxruntime", "openvino", "pt2"]
    # An .xml without its .bin would be a tenth of that.
    assert all(row["bytes"] > 800_000 for row in found)


def test_files_have_their_own_runtime(shared, tmp_path, capsys):
    file = shared / "weights" / "mobilenet_v1_0.25_128_quant.tflite"
    found = rows(capsys, file, "--threads", 1, "--batch", 1, "--batch", 3)
    assert [row["batch"] for row in found] == [1, 3]
    for row in found:
        assert (row["name"], row["runtime"]) == (file.name, "litert")
        assert row["bytes"] == file.stat().st_size
        assert row["peak_mb"] < 250


def test_a_file_made_for_one_image_takes_a_batch_one_after_another(shared):
    model = LiteRtModel(shared / "weights" / "mobilenet_v1_0.25_128_quant.tflite", threads=1)
    random = np.random.default_rng(0)
    images_NCHW = random.uniform(-1, 1, (3, 3, 128, 128)).astype(np.float32)
    together = model.run(images_NCHW)
    assert together.shape == (3, 1001)
    assert np.array_equal(together, np.concatenate([model.run(i[None]) for i in images_NCHW]))
    with pytest.raises(ValueError, match="it takes images of 3x128x128"):
        model.run(images_NCHW[:, :, :64])


def test_a_quantised_file_computes_what_its_imported_weights_do(shared):
    file = shared / "weights" / "mobilenet_v1_0.25_128_quant.tflite"
    model = LiteRtModel(file, threads=1)
    assert model.input_shape == (3, 128, 128)
    network = create_model("0.25-128", weights=file)
    random = torch.Generator().manual_seed(0)
    # Smooth pictures, since noise is nothing that the network knows.
    coarse = torch.rand(3, 3, 8, 8, generator=random) * 2 - 1
    images_NCHW = torch.nn.functional.interpolate(coarse, 128, mode="bilinear")
    with torch.inference_mode():
        expected = network.eval()(images_NCHW).softmax(1).numpy()
    # Its output is a softmax over 1,001 classes, the first of them background.
    outputs = model.run(images_NCHW.numpy())
    assert outputs.shape == (3, 1001)
    for ours, theirs in zip(expected, outputs[:, 1:], strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.9


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize(
    "peers",
    # Importing the others takes longer than timing them.
    [["torchvision"], pytest.param(["timm", "torchvision", "keras"], marks=pytest.mark.slow)],
)
def test_peers_run_beside_ours(capsys, peers):
    against = [word for peer in peers for word in ("--against", peer)]
    found = rows(capsys, "0.25-128", *against, "--threads", 1)
    assert [row["runtime"] for row in found] == ["onnxruntime", *peers]
    assert found[0]["top1"] == 41.5
    assert all(found[0]["median_ms"] < row["median_ms"] for row in found[1:])
    assert [row["bytes"] for row in found[1:]] == [None] * len(peers)


def test_a_picture_of_latency_and_accuracy(tmp_path, capsys):
    picture = tmp_path / "latency.png"
    rows(capsys, "0.25-128", "--plot", picture, "--threads", 1)
    assert picture.read_bytes().startswith(b"\x89PNG")


def save_relu(path, shape):
    """A graph of one operator, for a batch of a fixed size."""
    from onnx import TensorProto, checker, helper, save

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    save(model, path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("0.5-160x",), "0.5-160x"),
        (("nothing.onnx",), "nothing.onnx: there is no such model file"),
        ((SMALL, "--seconds", "inf"), "timing takes a number of seconds, not inf"),
        ((SMALL, "--runtime", "tensorrt"), "--runtime is torch, onnxruntime, litert, executorch"),
        ((SMALL, "--against", "caffe"), "--against is timm, torchvision, keras, not 'caffe'"),
        ((SMALL, "--plot", "x.png"), "--plot needs accuracies"),
        (("0.25-128", "--plot", "x.bmpp"), "--plot x.bmpp: the name of a picture ends in"),
        (("0.25-128", "--plot", "no/x.png"), "--plot no/x.png: there is no such folder"),
        (("one.onnx", "--batch", "2"), "one.onnx: it does not take a batch of 2"),
        (("two.onnx",), "two.onnx: it takes something else than a batch of images"),
        (("broken.onnx",), "broken.onnx: not a model that ONNX Runtime reads"),
        (("broken.tflite",), "broken.tflite: not a model that LiteRT reads"),
        (("notes.txt",), "files of models end in .onnx, .tflite"),
    ],
)
def test_mistakes_are_one_sentence(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("broken.onnx", "broken.tflite", "notes.txt"):
        (tmp_path / name).write_text("no model")
    save_relu(tmp_path / "one.onnx", [1, 3, 8, 8])
    save_relu(tmp_path / "two.onnx", [1, 3])
    assert cli(["benchmark", "--seconds", "0", "--threads", "1", *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "mobilenets:" in line]
    assert len(errors) == 1
    assert says in errors[0]


def test_a_runtime_that_is_not_there_says_how_to_install_it(tmp_path, monkeypatch):
    file = tmp_path / "model.tflite"
    file.write_bytes(b"")
    monkeypatch.setattr("mobilenets.runtimes.model.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'mobilenets\[litert\]'"):
        runtime_of(file).open(file)


def test_shapes_are_read_from_the_files(tmp_path):
    (subject,) = find_subjects(["0.25-97x161"], ["onnxruntime"], tmp_path)
    assert OnnxModel(tmp_path / subject.reference).input_shape == (3, 97, 161)


# Linux's counters, as files that a call moves on.
@pytest.mark.parametrize(
    ("domain", "before", "after", "expected"),
    [
        ("package-0", 1_000_000, 3_000_000, 2.0),
        # One that has run over.
        ("package-0", 3_000_000, 1_000, None),
        # The whole system's counts the package once more.
        ("psys", 1_000_000, 3_000_000, None),
    ],
)
def test_energy_where_the_system_tells_it(domain, before, after, expected, tmp_path):
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text(f"{before}\n")
    counter.with_name("name").write_text(f"{domain}\n")

    def call():
        counter.write_text(f"{after}\n")

    assert joules(call, seconds=0, counters=tmp_path) == expected
