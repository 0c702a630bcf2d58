"""Weights, batch-norm folding and timing: strict loading that names its cause in one line."""

import time
from itertools import groupby

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.layers import ConvUnit
from mobilenets.architecture.network import MobileNet
from mobilenets.cost import cost
from mobilenets.deploy.fold import fold_batch_norm
from mobilenets.runtimes.timing import MOST_CALLS, time_calls
from mobilenets.weights.create import create_model
from mobilenets.weights.state import load_strictly, read_safetensors


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # The tensors here are small: a second thread costs more than it gives.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(spec=None, num_classes=10):
    """A network whose batch norms have moved, as those of a trained one have."""
    torch.manual_seed(0)
    model = MobileNet(spec or MobileNetSpec(0.25, 64), num_classes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return model


def saved(model, folder):
    path = folder / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


def images(size=64, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, channels, size, size, generator=generator)


@pytest.mark.parametrize("as_folder", [False, True])
@torch.inference_mode()
def test_weights_come_back_to_the_bit(as_folder, tmp_path):
    # davidsandberg/facenet#672: the running statistics too, or evaluation is at chance.
    model = build()
    path = saved(model, tmp_path)
    again = create_model("0.25-64", 10, weights=str(tmp_path) if as_folder else path).eval()
    assert torch.equal(again(images()), model(images()))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_without_weights_the_network_is_new():
    model = create_model("0.25-64", 5, dropout=0.3)
    assert model.classifier.out_features == 5
    assert model.dropout.p == 0.3
    assert create_model(MobileNetSpec(0.25, 64, padding="keras"), None).spec.padding == "keras"


@pytest.mark.parametrize(
    ("stored", "stored_classes", "wanted", "wanted_classes", "says"),
    [
        # ildoonet/tf-pose-estimation#74: both named, instead of 80 lines of sizes.
        ("0.5-64", 10, "0.25-64", 10, "its width is 0.5 and the model's 0.25"),
        ("0.25-64", 10, "1.0-64", 10, "its width is 0.25 and the model's 1"),
        # The width is wrong before the class count is.
        ("0.5-64", 10, "0.25-64", 7, "its width is 0.5 and the model's 0.25"),
        # slim gives both 8 channels in the first layer.
        ("0.2-64", 10, "0.25-64", 10, "its width is 0.199 and the model's 0.25"),
        ("0.5-64-fullconv", 10, "0.25-64-fullconv", 10, "its width is 0.5 and the model's 0.25"),
        # TensorFlow's background class.
        ("0.25-64", 1001, "0.25-64", 1000, "it has 1001 classes and the model 1000"),
        # With and without a classifier.
        ("0.25-64", None, "0.25-64", 10, "one has a classifier and the other has none"),
        ("0.25-64", 10, "0.25-64", None, "one has a classifier and the other has none"),
        # Other variants: some layers missing, some extra, or both.
        ("0.25-64-shallow", 10, "0.25-64", 10, "it is another variant"),
        ("0.25-64", 10, "0.25-64-shallow", 10, "it is another variant"),
        ("0.25-64-fullconv", 10, "0.25-64", 10, "it is another variant"),
    ],
)
def test_weights_of_another_model_get_one_line(
    stored, stored_classes, wanted, wanted_classes, says, tmp_path
):
    path = saved(build(MobileNetSpec.parse(stored), stored_classes), tmp_path)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        create_model(wanted, wanted_classes, weights=path)
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit this model: {says}")
    # One example of each finding, however many there are.
    assert len(message.removeprefix(str(path))) < 400


@pytest.mark.parametrize(
    ("stored", "wanted", "says"),
    [
        ({"input_channels": 1}, {}, "it takes 1 input channels and the model 3"),
        ({}, {"input_channels": 4}, "it takes 3 input channels and the model 4"),
        # pytorch/vision#1005: 11 and 16 channels in the first layer, and no other width.
        (
            {"width": 0.35},
            {"width": 0.35, "rounding": "divisible8"},
            "its channels were rounded by another rule",
        ),
        # 819 channels in the last layer by one rule, 816 by the other.
        (
            {"width": 0.8, "rounding": "divisible8"},
            {"width": 0.8},
            "its channels were rounded by another rule",
        ),
    ],
)
def test_what_a_name_does_not_hold_is_told_apart_too(stored, wanted, says):
    state = build(MobileNetSpec(**{"width": 0.25, "resolution": 64, **stored})).state_dict()
    model = MobileNet(MobileNetSpec(**{"width": 0.25, "resolution": 64, **wanted}), 10)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        load_strictly(model, state, "weights")
    assert says in str(caught.value)


def test_every_kind_of_finding_is_counted():
    model = build()
    state = dict(model.state_dict())
    state["extra.weight"] = state.pop("classifier.bias")
    state["classifier.weight"] = torch.zeros(3, 256)
    with pytest.raises(ValueError, match="it has 3 classes and the model 10") as caught:
        load_strictly(model, state, "weights")
    message = str(caught.value)
    assert "1 missing (first classifier.bias)" in message
    assert "1 extra (first extra.weight)" in message
    assert "1 mis-shaped (first classifier.weight (3, 256) for (10, 256))" in message


def test_weights_that_do_not_fit_leave_the_model_as_it_was():
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()} | {"classifier.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match="does not fit"):
        load_strictly(model, state, "weights")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "it is not a MobileNet of this library"),
        # torchvision's names.
        (
            {"features.0.0.weight": torch.zeros(32, 3, 3, 3)},
            "it is not a MobileNet of this library",
        ),
    ],
)
def test_weights_of_another_library_are_called_that(state, says):
    with pytest.raises(ValueError, match=says):
        load_strictly(build(), state, "weights")


def test_another_model_is_called_that():
    with pytest.raises(ValueError, match="the model is not a MobileNet"):
        load_strictly(nn.Linear(2, 2), build().state_dict(), "weights")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such weights file"),
        (b"", "not a whole safetensors file"),
        (b"not weights at all, but long enough for a header", "not a whole safetensors file"),
        # A header that promises more than there is.
        (b"\xff" * 64, "not a whole safetensors file"),
        # PyTorch's own format is a zip file.
        (b"PK\x03\x04" + bytes(100), "not a whole safetensors file"),
    ],
)
def test_a_file_that_is_none_gets_one_line(content, says, tmp_path):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        create_model("0.25-64", 10, weights=path)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_truncated_file_gets_one_line(kept, tmp_path):
    # A download or a copy that was cut off: in the header, in the middle, near the end.
    path = saved(build(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"{path}: not a whole safetensors file")


def test_a_folder_without_weights_names_the_file_it_wants(tmp_path):
    with pytest.raises(ValueError, match="there is no such weights file") as caught:
        create_model("0.25-64", 10, weights=tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "model.safetensors"))


# Folding


@pytest.mark.parametrize(
    "spec",
    [
        MobileNetSpec(0.5, 96),
        # TensorFlow's epsilon enters the fold; its padding must not.
        MobileNetSpec(0.5, 97, padding="tensorflow", batch_norm_epsilon=1e-3, activation="relu6"),
        MobileNetSpec(0.5, 97, padding="keras", activation="leaky"),
        MobileNetSpec(0.25, 64, variant="fullconv", total_stride=16),
        MobileNetSpec(0.5, 64, variant="shallow", input_channels=1),
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_folded_network_computes_the_same(spec):
    model = build(spec)
    x = images(spec.height, spec.input_channels)
    expected = model(x)
    # Else a difference of 1e-4 would say nothing.
    assert expected.std() > 1e-2
    folded = fold_batch_norm(model)
    assert (folded(x) - expected).abs().max() < 1e-4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(p.numel() for p in folded.parameters()) == cost(spec, 10).parameters_folded


@pytest.mark.parametrize(
    ("num_classes", "parameters"),
    # OpenVINO's two models: 3,185,088 + 10,944 + the classifier.
    [(1000, 4_221_032), (1001, 4_222_057), (None, 3_196_032)],
)
def test_a_folded_network_has_the_published_parameters(num_classes, parameters):
    folded = fold_batch_norm(MobileNet(MobileNetSpec(), num_classes))
    assert sum(p.numel() for p in folded.parameters()) == parameters


def test_folding_twice_is_folding_once():
    once = fold_batch_norm(build())
    twice = fold_batch_norm(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    for key, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[key], value), key


def test_folding_leaves_the_model_as_it_was():
    # A model in training is folded by its running statistics, and goes on training.
    model = build().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert model.training
    assert not folded.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    unit = model.body["conv0"]
    assert isinstance(unit, ConvUnit)
    assert isinstance(unit.norm, nn.BatchNorm2d)


# Timing


def test_calls_are_timed_in_turns_after_a_warm_up():
    # Else a machine that slows down in the middle decides which is faster.
    order = []
    timings = time_calls(
        {name: lambda name=name: order.append(name) for name in "abc"}, seconds=0, warm_up=2
    )
    assert order[:6] == list("aabbcc")
    # Five rounds at least, however little time there is, of several calls each, the first of which does not count.
    turns = ["".join(same) for _, same in groupby(order[6:])]
    assert [turn[0] for turn in turns] == list("abc") * 5
    assert {timing.calls for timing in timings.values()} == {5 * (MOST_CALLS - 1)}
    assert {len(turn) for turn in turns} == {MOST_CALLS}


def test_timing_tells_a_slow_call_from_a_quick_one():
    timings = time_calls(
        {"slow": lambda: time.sleep(0.01), "quick": lambda: None}, seconds=0.2, warm_up=1
    )
    for timing in timings.values():
        assert 0 <= timing.lower_ms <= timing.median_ms <= timing.upper_ms
    assert timings["slow"].median_ms >= 10
    assert timings["quick"].median_ms < timings["slow"].median_ms
    assert timings["quick"].calls > timings["slow"].calls >= 5
    assert str(timings["slow"]).startswith(f"{timings['slow'].median_ms:.2f} ms (")


def test_timing_without_a_warm_up_counts_the_first_call():
    calls = []
    timings = time_calls({"a": lambda: calls.append(time.sleep(0.06))}, seconds=0, warm_up=0)
    assert len(calls) == timings["a"].calls == 5
