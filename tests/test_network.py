"""The network: its shape, its paddings against an independent reference, and its counts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mobilenets.architecture import MobileNetSpec, blocks_of, layers_of
from mobilenets.architecture.layers import ConvUnit, SeparableBlock
from mobilenets.architecture.network import MobileNet
from mobilenets.cost import PUBLISHED, cost

PADDINGS = ("torch", "tensorflow", "keras")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # The tensors here are small: a second thread costs more than it gives.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(spec, num_classes=10):
    """A network whose batch norms have moved, so that an error in one of them shows."""
    torch.manual_seed(0)
    model = MobileNet(spec, num_classes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def images(height, width=None, channels=3, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, height, width or height, generator=generator)


@torch.inference_mode()
def test_the_last_feature_map_is_1024x7x7():
    # tensorflow/models#1997: Table 1 prints a last stride of 2, which would end at 4x4.
    model = MobileNet(MobileNetSpec(), num_classes=None).eval()
    assert model.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 1024, 7, 7)
    assert [row.stride for row in blocks_of(model.spec)] == [
        2,
        1,
        2,
        1,
        2,
        1,
        2,
        1,
        1,
        1,
        1,
        1,
        2,
        1,
    ]


def test_the_parts_of_the_paper_network():
    with torch.device("meta"):
        modules = list(MobileNet(MobileNetSpec()).modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
    depthwise = [m for m in convolutions if m.groups > 1]
    assert len(convolutions) == 27
    assert sum(isinstance(m, nn.BatchNorm2d) for m in modules) == 27
    assert sum(isinstance(m, nn.Linear) for m in modules) == 1
    # Two activations a block and one after the first convolution; none after the classifier.
    assert sum(isinstance(m, nn.ReLU) for m in modules) == 27
    # Batch norm's shift makes a bias superfluous.
    assert all(m.bias is None for m in convolutions)
    assert len(depthwise) == 13
    # apache/tvm#3083: a lost `groups` is a full convolution with C times the weights.
    for m in depthwise:
        assert m.groups == m.in_channels == m.out_channels
        assert m.weight.shape == (m.in_channels, 1, 3, 3)
        assert m.kernel_size == (3, 3)
    pointwise = [m for m in convolutions[1:] if m.groups == 1]
    assert {m.kernel_size for m in pointwise} == {(1, 1)}
    # The stride sits on the depthwise convolution.
    assert [m.stride[0] for m in depthwise] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert {m.stride for m in pointwise} == {(1, 1)}


def test_a_block_is_depthwise_norm_activation_pointwise_norm_activation():
    # Figure 3: nothing is linear between the two convolutions.
    torch.manual_seed(0)
    block = SeparableBlock(4, 6, stride=2, activation="relu6").eval()
    # Large enough for both activations to cut at 6.
    nn.init.uniform_(block.pointwise.conv.weight, -1, 5)
    x = images(9, channels=4) * 100
    y = block.depthwise.conv(x)
    y = F.batch_norm(y, torch.zeros(4), torch.ones(4), eps=1e-5).clamp(0, 6)
    y = F.batch_norm(block.pointwise.conv(y), torch.zeros(6), torch.ones(6), eps=1e-5).clamp(0, 6)
    assert (y == 6).any()
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize(
    ("activation", "of_minus_8", "of_8"),
    # ReLU6 weights in a ReLU network change its outputs: the choice is part of the specification.
    [("relu", 0.0, 8.0), ("relu6", 0.0, 6.0), ("leaky", -0.8, 8.0)],
)
def test_activations(activation, of_minus_8, of_8):
    unit = ConvUnit(1, 1, kernel=1, activation=activation)
    x = torch.tensor([-8.0, 8.0])
    assert unit.activation(x).tolist() == pytest.approx([of_minus_8, of_8])


@pytest.mark.parametrize(
    ("activation", "kind"),
    [("relu", nn.ReLU), ("relu6", nn.ReLU6), ("leaky", nn.LeakyReLU)],
)
def test_every_activation_is_that_of_the_specification(activation, kind):
    with torch.device("meta"):
        modules = list(MobileNet(MobileNetSpec(0.25, activation=activation)).modules())
    assert [type(m) for m in modules if isinstance(m, nn.ReLU | nn.ReLU6 | nn.LeakyReLU)] == 27 * [
        kind
    ]


def test_dropout_is_the_share_that_is_dropped():
    # huggingface/transformers#22767: TensorFlow's keep probability 0.999 is p = 0.001.
    assert MobileNet(MobileNetSpec(0.25, 32)).dropout.p == 0.001
    assert MobileNet(MobileNetSpec(0.25, 32), dropout=0.2).dropout.p == 0.2


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_every_batch_norm_has_the_epsilon_of_the_specification(epsilon):
    with torch.device("meta"):
        model = MobileNet(MobileNetSpec(0.25, batch_norm_epsilon=epsilon))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {epsilon}
    # Not TensorFlow's decay of 0.9997 in the place of its complement.
    assert {m.momentum for m in norms} == {0.1}


# Padding


def same_padding(size, stride):
    """TensorFlow's formula for a 3x3 kernel: what is missing, the smaller half first."""
    missing = max((math.ceil(size / stride) - 1) * stride + 3 - size, 0)
    return missing // 2, missing - missing // 2


def pads(padding, size, stride, first):
    if padding == "torch":
        return 1, 1
    if padding == "keras" and stride == 2 and not first:
        return 0, 1
    return same_padding(size, stride)


def reference(spec, state, x, num_classes=True):
    """The whole network from its stored weights: explicit padding, then valid convolutions."""

    def unit(x, name, stride, groups, first=False):
        weight = state[f"{name}.conv.weight"]
        if weight.shape[-1] == 3:
            top, bottom = pads(spec.padding, x.shape[2], stride, first)
            left, right = pads(spec.padding, x.shape[3], stride, first)
            x = F.pad(x, (left, right, top, bottom))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        norm = [
            state[f"{name}.norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.batch_norm(x, *norm, eps=spec.batch_norm_epsilon).clamp(min=0)

    x = unit(x, "body.conv0", 2, 1, first=True)
    for index, stride in enumerate([1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1], start=1):
        x = unit(x, f"body.block{index}.depthwise", stride, x.shape[1])
        x = unit(x, f"body.block{index}.pointwise", 1, 1)
    return F.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    # onnx/tensorflow-onnx#1028: the amounts this file's own reference must give.
    [(224, 2, (0, 1)), (225, 2, (1, 1)), (97, 2, (1, 1)), (7, 1, (1, 1)), (1, 2, (1, 1))],
)
def test_the_reference_pads_as_tensorflow_does(size, stride, expected):
    assert same_padding(size, stride) == expected


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("height", "width"),
    [
        # Even all the way down to 7.
        (224, 224),
        # Odd from the start: 113, 57, 29, 15, 8.
        (225, 225),
        # Odd, then 49, 25, 13, 7, 4.
        (97, 97),
        # Odd and even sides at once: each side is padded by itself.
        (97, 160),
        (300, 98),
    ],
)
@torch.inference_mode()
def test_the_network_agrees_with_an_independent_reference(padding, height, width):
    model = build(MobileNetSpec(0.25, padding=padding, batch_norm_epsilon=1e-3))
    x = images(height, width)
    expected = reference(model.spec, model.state_dict(), x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_the_paddings_differ_where_they_should():
    # Otherwise the comparison above could not fail.
    outputs = {}
    state = build(MobileNetSpec(0.25)).state_dict()
    for padding in PADDINGS:
        model = MobileNet(MobileNetSpec(0.25, padding=padding), 10).eval()
        model.load_state_dict(state)
        outputs[padding] = [model(images(size)) for size in (224, 225)]
    even = {padding: pair[0] for padding, pair in outputs.items()}
    odd = {padding: pair[1] for padding, pair in outputs.items()}
    assert not torch.allclose(even["torch"], even["tensorflow"], rtol=1e-3)
    # 224 halves evenly five times, where Keras and TensorFlow pad alike.
    torch.testing.assert_close(even["tensorflow"], even["keras"])
    assert not torch.allclose(odd["tensorflow"], odd["keras"], rtol=1e-3)


@pytest.mark.parametrize("size", [224, 225, 97])
@torch.inference_mode()
def test_a_stride_2_convolution_agrees_with_numpy(size):
    # No torch in the reference at all: windows of a padded array, multiplied and summed.
    unit = ConvUnit(3, 4, kernel=3, stride=2, padding="tensorflow")
    unit.norm = unit.activation = nn.Identity()
    x = images(size, count=1)
    before, after = same_padding(size, 2)
    padded = np.pad(x[0].numpy(), ((0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("chwij,ocij->ohw", windows, unit.conv.weight.numpy())
    np.testing.assert_allclose(unit(x)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "first", "size", "tap"),
    [
        # The output at (0, 0) sees an impulse at (0, 0) through the corner of the kernel when
        # nothing is padded there, and through its centre when one pixel is.
        ("torch", True, 8, (1, 1)),
        ("torch", False, 7, (1, 1)),
        ("tensorflow", True, 8, (0, 0)),
        ("tensorflow", True, 7, (1, 1)),
        ("tensorflow", False, 8, (0, 0)),
        ("tensorflow", False, 7, (1, 1)),
        # Keras' first layer is SAME; its others pad below and right whatever the size.
        ("keras", True, 8, (0, 0)),
        ("keras", True, 7, (1, 1)),
        ("keras", False, 8, (0, 0)),
        ("keras", False, 7, (0, 0)),
    ],
)
@torch.inference_mode()
def test_an_impulse_shows_where_the_padding_is(padding, first, size, tap):
    unit = ConvUnit(1, 1, kernel=3, stride=2, padding=padding, first=first)
    unit.norm = unit.activation = nn.Identity()
    unit.conv.weight.copy_(torch.arange(1.0, 10.0).reshape(1, 1, 3, 3))
    impulse = torch.zeros(1, 1, size, size)
    impulse[0, 0, 0, 0] = 1
    assert unit(impulse)[0, 0, 0, 0] == unit.conv.weight[0, 0][tap]


@torch.inference_mode()
def test_the_paddings_agree_at_stride_1():
    x = images(9, channels=2)
    outputs = []
    for padding in PADDINGS:
        torch.manual_seed(0)
        outputs.append(ConvUnit(2, 2, kernel=3, padding=padding).eval()(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("padding", "sizes"),
    [
        ("torch", [150, 75, 38, 19, 10]),
        ("tensorflow", [150, 75, 38, 19, 10]),
        # SSD's anchors depend on it: Keras ends at 9.
        ("keras", [150, 75, 37, 18, 9]),
    ],
)
@torch.inference_mode()
def test_sizes_for_300_pixels(padding, sizes):
    spec = MobileNetSpec(0.25, 300, padding=padding)
    maps = MobileNet(spec, None).eval().forward_taps(torch.zeros(1, 3, 300, 300), (2, 4, 8, 16, 32))
    assert [maps[stride].shape[2:] for stride in (2, 4, 8, 16, 32)] == [(s, s) for s in sizes]
    assert spec.final_size == (sizes[-1], sizes[-1])


# Sizes, channels, variants


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("height", "width", "last"),
    [
        (224, 224, (7, 7)),
        (192, 192, (6, 6)),
        (160, 160, (5, 5)),
        (128, 128, (4, 4)),
        # A pool fixed at 7x7 would drop the last row and column here without a word.
        (256, 256, (8, 8)),
        # No multiples of 32.
        (225, 225, {"keras": (7, 7), "other": (8, 8)}),
        (97, 97, {"keras": (3, 3), "other": (4, 4)}),
        (97, 161, {"keras": (3, 5), "other": (4, 6)}),
        (224, 96, (7, 3)),
        # The paper's strides leave one pixel of a small image.
        (32, 32, (1, 1)),
    ],
)
@torch.inference_mode()
def test_any_size_works_and_the_specification_knows_the_last_map(padding, height, width, last):
    if isinstance(last, dict):
        last = last["keras" if padding == "keras" else "other"]
    spec = MobileNetSpec(0.25, (height, width), padding=padding)
    model = MobileNet(spec, 5).eval()
    x = torch.zeros(2, 3, height, width)
    assert tuple(model.forward_features(x).shape) == (2, 256, *last)
    assert spec.final_size == last
    assert layers_of(spec, None)[-1].out_size == last
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize("channels", [1, 3, 4])
@torch.inference_mode()
def test_input_channels(channels):
    model = MobileNet(MobileNetSpec(0.25, 64, input_channels=channels), 5).eval()
    assert model.body["conv0"].conv.weight.shape == (8, channels, 3, 3)
    assert model(images(64, channels=channels)).shape == (2, 5)


@pytest.mark.parametrize("variant", ["separable", "fullconv", "shallow"])
@pytest.mark.parametrize(
    ("total_stride", "last", "strides"),
    [
        (32, 2, [2, 4, 8, 16, 32]),
        (16, 4, [1, 2, 4, 8, 16]),
        (8, 8, [1, 2, 4, 8]),
        (4, 16, [1, 2, 4]),
    ],
)
@torch.inference_mode()
def test_variants_and_total_strides(variant, total_stride, last, strides):
    spec = MobileNetSpec(0.25, 64, variant=variant, total_stride=total_stride)
    model = MobileNet(spec, None).eval()
    x = images(64)
    features = model.forward_features(x)
    assert features.shape == (2, 256, last, last)
    assert list(model.taps) == strides
    maps = model.forward_taps(x, strides)
    for stride in strides:
        assert maps[stride].shape == (2, model.taps[stride].channels, 64 // stride, 64 // stride)
    torch.testing.assert_close(maps[total_stride], features)


@pytest.mark.parametrize(
    ("total_stride", "strides_of_2"),
    # The earliest strides are the ones to go: the conv first, then blocks 2 and 4.
    [(32, [0, 2, 4, 6, 12]), (16, [2, 4, 6, 12]), (8, [4, 6, 12]), (4, [6, 12])],
)
def test_a_smaller_total_stride_relaxes_the_earliest(total_stride, strides_of_2):
    rows = blocks_of(MobileNetSpec(1.0, 32, total_stride=total_stride))
    assert [row.index for row in rows if row.stride == 2] == strides_of_2


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("separable", ["conv0", *(f"block{i}" for i in range(1, 14))]),
        ("fullconv", [f"conv{i}" for i in range(14)]),
        # Block 6 makes the 512 channels, and stays.
        ("shallow", ["conv0", *(f"block{i}" for i in (1, 2, 3, 4, 5, 6, 12, 13))]),
    ],
)
def test_the_blocks_of_a_variant(variant, names):
    with torch.device("meta"):
        assert list(MobileNet(MobileNetSpec(variant=variant)).body) == names


@torch.inference_mode()
def test_taps_are_the_last_blocks_of_their_strides():
    model = build(MobileNetSpec(1.0, 96), None)
    assert {stride: (tap.block, tap.channels) for stride, tap in model.taps.items()} == {
        2: ("block1", 64),
        4: ("block3", 128),
        8: ("block5", 256),
        # SSD's first map: Conv2d_11_pointwise.
        16: ("block11", 512),
        32: ("block13", 1024),
    }
    x = images(96, count=1)
    maps = model.forward_taps(x, (16,))
    assert list(maps) == [16]
    at_16 = x
    for name in list(model.body)[:12]:
        at_16 = model.body[name](at_16)
    assert torch.equal(maps[16], at_16)


@pytest.mark.parametrize(
    ("strides", "says"),
    [
        ((64,), "0.25-64 has features at strides 2, 4, 8, 16, 32, not at 64"),
        # One that exists does not hide those that don't, and the order is the reader's.
        ((32, 64, 3), "not at 3, 64"),
        ((0,), "not at 0"),
        ((), "not at none"),
    ],
)
def test_a_stride_without_features_is_named(strides, says):
    model = MobileNet(MobileNetSpec(0.25, 64), None)
    with pytest.raises(ValueError, match=says):
        model.forward_taps(images(64), strides)


@torch.inference_mode()
def test_without_a_classifier_the_output_is_pooled_features():
    model = build(MobileNetSpec(0.5, 64), None)
    x = images(64)
    assert model(x).shape == (2, 512)
    assert model.feature_channels == 512
    torch.testing.assert_close(model(x), model.forward_features(x).mean((2, 3)))
    assert not [key for key in model.state_dict() if key.startswith("classifier")]


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_classifier_has_at_least_one_class(num_classes):
    with pytest.raises(ValueError, match=f"at least one class, not {num_classes}"):
        MobileNet(MobileNetSpec(0.25, 32), num_classes)
    with pytest.raises(ValueError, match=f"at least one class, not {num_classes}"):
        cost(MobileNetSpec(0.25, 32), num_classes)


# Initial weights


def test_initial_weights():
    torch.manual_seed(0)
    model = MobileNet(MobileNetSpec())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            # Fan-out within a group: 9 for a depthwise convolution, not 9 times its channels.
            kernel = math.prod(module.kernel_size)
            fan_out = kernel if module.groups > 1 else kernel * module.out_channels
            values, std = module.weight, math.sqrt(2 / fan_out)
        elif isinstance(module, nn.Linear):
            values, std = module.weight, 0.01
            assert not module.bias.any()
        else:
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert not module.bias.any()
            continue
        # Five standard errors of a sample's standard deviation, and of its mean.
        count = values.numel()
        assert values.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count)), name
        assert abs(values.mean().item()) < 5 * std / math.sqrt(count), name


@torch.inference_mode()
def test_initial_outputs_neither_vanish_nor_explode():
    torch.manual_seed(0)
    model = MobileNet(MobileNetSpec(0.5, 96), None).train()
    assert 0.1 < model.forward_features(images(96, count=4)).std() < 10


# What else must run it


@torch.inference_mode()
def test_channels_last_gives_the_same():
    model = build(MobileNetSpec(0.25, 96, padding="tensorflow"))
    x = images(97)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    actual = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_bfloat16_is_finite_and_near():
    model = build(MobileNetSpec(0.25, 96))
    expected = model(images(96))
    actual = model.bfloat16()(images(96).bfloat16())
    assert actual.dtype == torch.bfloat16
    assert actual.isfinite().all()
    assert (actual.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("padding", ["torch", "tensorflow", "keras"])
@pytest.mark.parametrize("side", [7, 8])
def test_training_in_bfloat16_steps_over_the_same_pixels(padding, side):
    """Depthwise, stride 2: output and gradients near those of fp32, by whatever operator."""
    torch.manual_seed(0)
    unit = ConvUnit(8, 8, kernel=3, stride=2, groups=8, padding=padding).train()
    image = torch.randn(4, 8, side, side)
    results = []
    for enabled in (False, True):
        source = image.clone().requires_grad_()
        unit.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            # The input of a later layer comes in bfloat16.
            output = unit(source.bfloat16() if enabled else source)
        (output.float() ** 2).sum().backward()
        results.append((output.float(), source.grad, unit.conv.weight.grad.clone()))
    for wide, narrow in zip(*results, strict=True):
        assert (wide - narrow).norm() / wide.norm() < 0.02
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)


def test_every_parameter_gets_a_gradient():
    model = build(MobileNetSpec(0.25, 64, padding="keras")).train()
    model(images(64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("padding", PADDINGS)
@torch.inference_mode()
def test_torch_export_gives_the_same(padding):
    model = build(MobileNetSpec(0.25, 97, padding=padding))
    program = torch.export.export(model, (images(97),))
    torch.testing.assert_close(program.module()(images(97)), model(images(97)))


def test_torch_export_with_a_free_batch():
    model = build(MobileNetSpec(0.25, 96))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(96),), dynamic_shapes=({0: batch},))
    for count in (1, 3):
        x = images(96, count=count)
        torch.testing.assert_close(program.module()(x), model(x))


@torch.inference_mode()
def test_torch_compile_takes_the_whole_network():
    # The tracing alone, without a graph break; the C++ code behind it is the slow test's.
    model = build(MobileNetSpec(0.25, 97, padding="tensorflow"))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(97)), model(images(97)))


@pytest.mark.slow
@torch.inference_mode()
def test_torch_compile_to_machine_code():
    # About a minute on 2 cores: pytest -m slow tests/test_network.py
    model = build(MobileNetSpec(0.25, 97, padding="tensorflow"))
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images(97)), model(images(97)), rtol=1e-3, atol=1e-5)


# Counts

COUNTED = [
    # The 16 models, with and without a classifier.
    *[(row.spec, 1000) for row in PUBLISHED],
    *[(row.spec, None) for row in PUBLISHED[::5]],
    # Class counts: background, CIFAR, one.
    *[(MobileNetSpec(), classes) for classes in (1, 10, 100, 1001)],
    # Widths on which the rounding rules differ, and beyond 1.
    *[
        (MobileNetSpec(width, rounding=rounding), 1000)
        for width in (0.1, 0.35, 0.6, 0.8, 1.25)
        for rounding in ("slim", "keras", "divisible8")
    ],
    (MobileNetSpec(0.5, 32), 1000),
    (MobileNetSpec(0.5, 225), 1000),
    # Sizes that are no multiples of 32 and a non-square one, each padding; above, one pixel left.
    *[
        (MobileNetSpec(0.5, resolution, padding=padding), 1000)
        for resolution in (97, 300, (97, 161))
        for padding in PADDINGS
    ],
    # Variants and total strides, on an odd size.
    *[
        (MobileNetSpec(0.5, 97, variant=variant, total_stride=total_stride), 10)
        for variant in ("separable", "fullconv", "shallow")
        for total_stride in (32, 16, 8, 4)
    ],
    *[
        (MobileNetSpec(0.5, 97, padding=padding, total_stride=total_stride), 10)
        for padding in ("tensorflow", "keras")
        for total_stride in (16, 8, 4)
    ],
    (MobileNetSpec(variant="fullconv"), 1000),
    (MobileNetSpec(variant="shallow"), 1000),
    # Grey and alpha.
    *[(MobileNetSpec(input_channels=channels), 1000) for channels in (1, 4)],
]


@pytest.mark.parametrize(
    ("spec", "num_classes"),
    COUNTED,
    ids=[f"{s}-{s.rounding}-{s.padding}-{s.input_channels}-{k}" for s, k in COUNTED],
)
def test_the_network_counts_what_cost_says(spec, num_classes):
    with torch.device("meta"):
        model = MobileNet(spec, num_classes).eval()
        x = torch.empty(1, spec.input_channels, spec.height, spec.across)
    counted = cost(spec, num_classes)
    assert sum(p.numel() for p in model.parameters()) == counted.parameters
    # Keras counts the running statistics too; PyTorch's one number a norm is not a statistic.
    values = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert sum(v.numel() for v in values.values()) == counted.parameters_keras
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(x)
    assert flops.get_total_flops() == counted.flops == 2 * counted.mult_adds


@torch.inference_mode()
def test_every_layer_row_is_a_layer_of_the_network():
    # Not only the totals: names, shapes, strides and sizes, one by one, on an odd size.
    spec = MobileNetSpec(0.35, (97, 161), rounding="divisible8", padding="keras", total_stride=16)
    model = MobileNet(spec, 7).eval()
    seen = []

    def record(name):
        def hook(module, inputs, output):
            if isinstance(module, nn.Linear):
                seen.append((name, module.in_features, module.out_features, 1, 1, (1, 1)))
            else:
                shape = (module.in_channels, module.out_channels, module.stride[0], module.groups)
                seen.append((name, *shape, tuple(output.shape[2:])))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            plain = name.removeprefix("body.").removesuffix(".conv")
            module.register_forward_hook(record(plain))
    model(torch.zeros(1, 3, 97, 161))
    assert seen == [
        (row.name, row.in_channels, row.out_channels, row.stride, row.groups, row.out_size)
        for row in layers_of(spec, 7)
    ]
