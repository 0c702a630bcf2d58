"""What a recipe changes about a network before its first step: identity, whitening, batch norm.

Shapes: N images, C channels, P patches.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobilenets import Run, tasks
from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.network import MobileNet
from mobilenets.data.loaders import MemoryLoader
from mobilenets.data.sources import open_source
from mobilenets.data.splits import Source
from mobilenets.training.initialisation import DEPTHWISE_NOISE, freeze_first_layer, prepare, whiten
from mobilenets.training.loop import train
from mobilenets.training.processes import ALONE
from mobilenets.training.recipe import Recipe
from mobilenets.training.session import Session
from mobilenets.training.stages import Stages

CLASSIFICATION = tasks.find("classification")
CPU = torch.device("cpu")
PLAIN = Recipe(name="plain", epochs=1)


def start(folder, spec, **changes):
    """A run on 192 of the digits, a third of them for validation."""
    recipe = CLASSIFICATION.recipes()["digits"].override(
        {"epochs": 1, "held_out": 1 / 3, **changes}
    )
    whole = open_source("digits")
    few = {"train": whole.splits["train"].take(range(192))}
    task = CLASSIFICATION(
        whole.labels,
        CLASSIFICATION.from_data("digits", spec, recipe).preprocessing,
        Source(whole.where, whole.labels, few, whole.mirror),
    )
    data = task.build_data(recipe, on_bad_image="stop")
    return Run.create(folder, task, spec, recipe, data.record), data, recipe


def pointwise(model):
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    ]


# Rounded widths, the paper's own, and a table without its five equal blocks.
@pytest.mark.parametrize("model", ["0.25-8-s4", "0.35-32-s8", "0.5-16-s4-shallow"])
def test_pointwise_layers_start_as_the_identity(model):
    spec = MobileNetSpec.parse(model)
    torch.manual_seed(0)
    network = MobileNet(spec, 10)
    before = {name: module.weight.clone() for name, module in pointwise(network)}
    prepare(network, PLAIN.override({"dirac": True}))
    network.eval()
    assert len(before) in (13, 8)
    units = dict(network.named_modules())
    for name, conv in pointwise(network):
        inputs = torch.rand(2, conv.in_channels, 3, 3)
        same = min(conv.in_channels, conv.out_channels)
        assert conv(inputs)[:, :same].equal(inputs[:, :same])
        # Further outputs are as they were.
        assert conv.weight[same:].equal(before[name][same:])
        # Through batch norm, as it starts, and ReLU too: non-negative inputs stay.
        unit = units[name.removesuffix(".conv")]
        assert torch.allclose(unit(inputs)[:, :same], inputs[:, :same], atol=1e-4)


def test_identity_of_fewer_outputs_than_inputs():
    first, conv = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)
    before = first.weight.clone()
    prepare(nn.Sequential(first, conv), PLAIN.override({"dirac": True}))
    assert conv.weight.squeeze().equal(torch.eye(4, 6))
    assert first.weight.equal(before)


def test_full_convolutions_start_as_the_identity_too():
    torch.manual_seed(0)
    network = MobileNet(MobileNetSpec(0.25, 32, variant="fullconv"), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare(network, PLAIN.override({"dirac": True}))
    convs = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert convs[0][1].weight.equal(before[f"{convs[0][0]}.weight"])
    for name, conv in convs[1:]:
        same = min(conv.in_channels, conv.out_channels)
        inputs = torch.rand(2, conv.in_channels, 6, 6)
        stride = conv.stride[0]
        outputs = conv(inputs)[:, :same]
        assert torch.allclose(outputs, inputs[:, :same, ::stride, ::stride], atol=1e-6)
        assert conv.weight[same:].equal(before[f"{name}.weight"][same:])


def test_depthwise_filters_start_as_the_identity_with_noise():
    torch.manual_seed(0)
    network = MobileNet(MobileNetSpec(0.25, 32), 10)
    prepare(network, PLAIN.override({"dirac": True}))
    filters_CHW = torch.cat(
        [m.weight.squeeze(1) for m in network.modules() if getattr(m, "groups", 1) > 1]
    )
    mean_HW, spread_HW = filters_CHW.mean(0), filters_CHW.std(0)
    assert torch.allclose(mean_HW, torch.eye(3)[1].outer(torch.eye(3)[1]), atol=0.05)
    assert torch.allclose(spread_HW, torch.full((3, 3), DEPTHWISE_NOISE), rtol=0.1)


def test_first_layer_norms_and_classifier_keep_their_start():
    torch.manual_seed(0)
    network = MobileNet(MobileNetSpec(0.25, 32), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare(network, PLAIN.override({"dirac": True}))
    changed = {
        name for name, value in network.state_dict().items() if not value.equal(before[name])
    }
    depthwise = {
        f"{name}.weight" for name, m in network.named_modules() if getattr(m, "groups", 1) > 1
    }
    assert changed == depthwise | {f"{name}.weight" for name, _ in pointwise(network)}


def test_without_dirac_nothing_changes():
    torch.manual_seed(0)
    network = MobileNet(MobileNetSpec(0.25, 32), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare(network, PLAIN)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


# PyTorch's momentum is the share of the new batch: TensorFlow's 0.9997 would be 0.0003.
@pytest.mark.parametrize("momentum", [0.1, 0.4, 1.0, 0.0003])
def test_batch_norm_momentum(momentum):
    network = MobileNet(MobileNetSpec(0.25, 32), 10)
    prepare(network, PLAIN.override({"batch_norm_momentum": momentum}))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 27
    assert {norm.momentum for norm in norms} == {momentum}
    # After one batch the running mean is that share of the batch's own.
    norms[0].train()(torch.full((2, norms[0].num_features, 1, 1), 3.0))
    assert norms[0].running_mean.allclose(torch.tensor(3.0 * momentum))


class Images:
    """A loader of one batch, or of several."""

    def __init__(self, *images):
        self.given = images

    def batches(self, epoch):
        from mobilenets.data.loaders import Batch

        for images in self.given:
            yield Batch(images, torch.zeros(len(images), dtype=torch.int64), len(images))


def patches(images_NCHW):
    """All 3x3 patches that a first layer sees, its padding included: (P, 9 C)."""
    return F.unfold(images_NCHW, 3, padding=1).transpose(1, 2).flatten(0, 1)


def correlated(channels, side, count=300):
    """Images whose neighbouring pixels, and whose channels, are much alike, as in photos."""
    random = torch.Generator().manual_seed(0)
    rough = torch.randn(count, channels, side + 2, side + 2, generator=random)
    smooth = F.avg_pool2d(rough, 3, stride=1)
    return smooth + 0.5 * smooth.mean(1, keepdim=True)


def unit_covariance(side, channels, outputs):
    images = correlated(channels, side)
    layer = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
    before = layer.weight.detach().clone()
    whiten(layer, Images(images[:100], images[100:]))
    count = min(9 * channels, outputs // 2)
    filters = layer.weight.detach().flatten(1)
    responses = patches(images) @ filters[:count].T
    # Every fourth patch stands for all of them.
    assert torch.allclose(responses.T.cov(), torch.eye(count), atol=0.12)
    # The same negated, and what is left of the layer as it was.
    assert filters[count : 2 * count].equal(-filters[:count])
    assert layer.weight[2 * count :].equal(before[2 * count :])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("outputs", [8, 32, 64])
def test_whitened_patches_have_unit_covariance(channels, outputs):
    unit_covariance(9, channels, outputs)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (8, 3)])
def test_whitening_looks_at_all_columns(side, channels):
    unit_covariance(side, channels, 32)


def test_the_strongest_filters_come_first():
    images = correlated(3, 9)
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    whiten(layer, Images(images))
    # A filter is divided by the root of its eigenvalue: the strongest is the shortest.
    lengths = layer.weight.detach().flatten(1).norm(dim=1)[:4].tolist()
    assert lengths == sorted(lengths)
    largest = torch.linalg.eigvalsh(patches(images).T.cov())[-1].item()
    assert lengths[0] == pytest.approx((largest + 5e-4) ** -0.5, rel=0.05)


# Grey pictures in three equal channels, as the digits are: 18 of 27 directions are empty.
def test_no_filter_is_dead():
    images = correlated(1, 9).expand(-1, 3, -1, -1)
    layer = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    whiten(layer, Images(images))
    assert layer(images).transpose(0, 1).flatten(1).var(1).min() > 1e-3


def test_whitening_stops_at_enough_images(monkeypatch):
    monkeypatch.setattr("mobilenets.training.initialisation.WHITENING_IMAGES", 100)
    images, seen = correlated(1, 9), []

    class Counted(Images):
        def batches(self, epoch):
            for batch in super().batches(epoch):
                seen.append(len(batch))
                yield batch

    whiten(nn.Conv2d(1, 8, 3, padding=1), Counted(*images.split(60)))
    assert seen == [60, 60]


def test_the_first_full_convolution_is_frozen():
    network = MobileNet(MobileNetSpec(0.25, 32), 10)
    layer = freeze_first_layer(network)
    assert layer is network.body["conv0"].conv
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["body.conv0.conv.weight"]
    with pytest.raises(ValueError, match="no first convolution"):
        freeze_first_layer(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(2, 2)))


def spec_of(width, channels):
    return MobileNetSpec(width, 8, total_stride=4, input_channels=channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("width", [0.25, 1.0])
def test_whitening_is_frozen_in_training(tmp_path, width, channels):
    run, data, recipe = start(tmp_path / "run", spec_of(width, channels), whiten=True, dirac=True)
    session = Session(run, data, recipe, CPU, ALONE, None)
    name = "body.conv0.conv.weight"
    before = {key: value.clone() for key, value in session.model.state_dict().items()}
    # The filters are whitening ones: the strongest comes again, negated.
    strongest = before[name][0]
    assert any(filter_.equal(-strongest) for filter_ in before[name])
    for position, batch in enumerate(data.train.batches(1)):
        session.step(batch, 1.0, Stages())
        if position == 1:
            break
    after = session.model.state_dict()
    assert after[name].equal(before[name])
    # All other convolutions move.
    convolutions = [key for key in after if key.endswith(".conv.weight")]
    assert [key for key in convolutions if after[key].equal(before[key])] == [name]


def test_whitening_survives_an_epoch_and_is_kept(tmp_path):
    changes = {"whiten": True, "ema_decay": 0.9, "optimizer.weight_decay": 0.01}
    run, data, recipe = start(tmp_path / "run", spec_of(0.25, 3), **changes)
    torch.manual_seed(recipe.seed)
    expected = freeze_first_layer(run.task.build_model(run.spec, recipe))
    whiten(expected, data.train)
    assert train(run, data, recipe, CPU, report=lambda line: None)
    kept = Run.load(tmp_path / "run").model.body["conv0"].conv.weight
    assert torch.allclose(kept, expected.weight, atol=1e-6)
    assert isinstance(data.train, MemoryLoader)


def test_weights_come_before_whitening(tmp_path):
    run, data, recipe = start(tmp_path / "run", spec_of(0.25, 3), whiten=True)
    torch.manual_seed(1)
    weights = run.task.build_model(run.spec, recipe).state_dict()
    session = Session(run, data, recipe, CPU, ALONE, weights)
    name = "body.conv0.conv.weight"
    assert session.model.state_dict()[name].equal(weights[name])
    assert not session.model.body["conv0"].conv.weight.requires_grad
