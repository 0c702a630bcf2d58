"""Predictions through the runtime whose export was proven, with images read ahead in threads."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets import Run
from mobilenets.cli.main import run as cli
from mobilenets.data.images import BadImageError
from mobilenets.deploy.predictor import find_engine, predict_images


@pytest.fixture
def run(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "run")
    return Run.load(tmp_path / "run")


@pytest.fixture
def photos(tmp_path):
    """More than a batch of pictures, one of them damaged."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02}.png" for number in range(40)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (12, 10), dtype=np.uint8)).save(path)
    paths[35].write_bytes(b"no picture")
    return paths


def test_both_runtimes_say_the_same_in_order(run, photos):
    before = torch.get_num_threads()
    said = {}
    for runtime in ("torch", "onnxruntime"):
        engine = find_engine(run, runtime)
        assert engine.runtime == runtime
        found = list(predict_images(run, photos, engine))
        assert [path for path, _ in found] == photos
        assert [type(answer) for _, answer in found].count(BadImageError) == 1
        assert isinstance(found[35][1], BadImageError)
        said[runtime] = [
            answer.to_dict()["predictions"][0]["label"]
            for _, answer in found
            if not isinstance(answer, BadImageError)
        ]
    assert said["torch"] == said["onnxruntime"]
    assert torch.get_num_threads() == before
    # One at a time is the same.
    alone = [run.predict(photos[number]).to_dict()["predictions"][0]["label"] for number in (0, 33)]
    assert alone == [said["torch"][0], said["torch"][33]]


def test_a_proven_export_is_taken_and_named(run, photos, capsys):
    asked = ["predict", str(run.folder), str(photos[0])]
    assert cli([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["runtime"] == "onnxruntime"
    assert cli(asked) == 0
    assert "through onnxruntime" in capsys.readouterr().err
    assert cli([*asked, "--json", "--runtime", "torch"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["runtime"] == "torch"


def other_weights(run):
    path = run.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))


def other_file(run):
    path = run.folder / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"x")


def no_proof(run):
    (run.folder / "onnx" / "manifest.json").write_text("{")


def no_file(run):
    (run.folder / "onnx" / "model.onnx").unlink()


def refuted(run):
    path = run.folder / "onnx" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parity"]["holds"] = False
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("spoil", [other_weights, other_file, no_proof, no_file, refuted])
def test_what_is_not_proven_is_not_taken(run, spoil):
    assert find_engine(run).runtime == "onnxruntime"
    spoil(run)
    assert find_engine(run).runtime == "torch"
    with pytest.raises(ValueError, match="has no export of its weights that was proven equal"):
        find_engine(run, "onnxruntime")


def test_an_unknown_runtime_is_one_sentence(run, photos, capsys):
    assert cli(["predict", str(run.folder), str(photos[0]), "--runtime", "tensorrt"]) == 2
    said = capsys.readouterr().err
    assert "--runtime is auto, torch, onnxruntime, litert, executorch, openvino, pt2" in said
    assert "not 'tensorrt'" in said


def pretended(times, call):
    call()
    return next(times)


def test_the_fastest_of_several_is_taken(run, photos, monkeypatch):
    assert cli(["export", str(run.folder), "--to", "pt2"]) == 0
    for slow, quick in (("pt2", "onnxruntime"), ("onnxruntime", "pt2")):
        times = [9.0 if name == slow else 1.0 for name in ("onnxruntime", "pt2") for _ in range(6)]
        monkeypatch.setattr(
            "mobilenets.deploy.predictor.time_once", partial(pretended, iter(times))
        )
        assert find_engine(run).runtime == quick
    assert find_engine(run, "pt2").runtime == "pt2"
    outputs = find_engine(run, "pt2").outputs(run.prepare(photos[0]))
    assert np.allclose(outputs, run.outputs(run.prepare(photos[0])).numpy(), atol=1e-4)
