"""Weights of other projects: each dialect read into our network, with nothing lost and nothing assumed."""

import json
import pickle
import tarfile
import zipfile

import flatbuffers
import h5py
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from PIL import Image
from safetensors.torch import save_file

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.layer_rows import layers_of
from mobilenets.architecture.network import MobileNet
from mobilenets.data.images import image_to_tensor
from mobilenets.data.transforms import fit, normalise
from mobilenets.weights.download import name_of
from mobilenets.weights.files import import_weights, parse_said
from mobilenets.weights.imported import Said
from mobilenets.weights.registry import PUBLISHED_WEIGHTS
from tflite_writer import folded, quantised, write_tflite

CORAL = {
    str(entry.spec): [name_of(file.address) for file in entry.files]
    for entry in PUBLISHED_WEIGHTS
    if entry.source == "coral"
}
RETINAFACE = "mobilenetv1_0.25_leaky_imagenet.pth.tar"


def random_network(name="0.25-64", classes=7, **choices):
    """Weights and batch-norm statistics that all differ, so that nothing can be mixed up unseen."""
    torch.manual_seed(3)
    network = MobileNet(MobileNetSpec.parse(name, **choices), classes).eval()
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif key.endswith("running_mean") or ".norm.bias" in key:
                value.normal_(0, 0.3)
            elif ".norm.weight" in key:
                value.uniform_(0.7, 1.6)
            elif key.startswith("classifier"):
                value.normal_()
    return network


def loaded(imported):
    network = MobileNet(imported.spec, imported.classes).eval()
    network.load_state_dict(imported.state)
    return network


# Cases 5 and 11: SAME padding differs between even and odd sides; no multiple of 32, not square.
SIZES = ((64, 64), (97, 97), (70, 45))


def assert_same(ours, theirs, sizes=SIZES):
    for height, width in sizes:
        images = torch.randn(2, ours.spec.input_channels, height, width)
        with torch.inference_mode():
            torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def units(network):
    """Names of ours in order, each with its convolution and batch norm."""
    modules = dict(network.named_modules())
    for layer in layers_of(network.spec, None):
        unit = modules[f"body.{layer.name}"]
        yield layer, unit.conv, unit.norm


# PyTorch.


def timm_names(index):
    if index == 0:
        return "conv_stem", "bn1"
    block, part = divmod(index - 1, 2)
    depths = [1, 2, 2, 6, 2]
    stage = next(s for s in range(5) if block < sum(depths[: s + 1]))
    place = f"blocks.{stage}.{block - sum(depths[:stage])}"
    return (
        (f"{place}.conv_dw", f"{place}.bn1") if part == 0 else (f"{place}.conv_pw", f"{place}.bn2")
    )


def hugging_face_names(index):
    place = "conv_stem" if index == 0 else f"layer.{index - 1}"
    return f"mobilenet_v1.{place}.convolution", f"mobilenet_v1.{place}.normalization"


def kuangliu_names(index):
    if index == 0:
        return "conv1", "bn1"
    block, part = divmod(index - 1, 2)
    return f"layers.{block}.conv{part + 1}", f"layers.{block}.bn{part + 1}"


def marvis_names(index):
    if index == 0:
        return "model.0.0", "model.0.1"
    block, part = divmod(index - 1, 2)
    return f"model.{block + 1}.{3 * part}", f"model.{block + 1}.{3 * part + 1}"


def unknown_names(index):
    return f"net.c{index}", f"net.n{index}"


def exported(network, names, classifier):
    state = {}
    for index, (_, conv, norm) in enumerate(units(network)):
        conv_name, norm_name = names(index)
        state[f"{conv_name}.weight"] = conv.weight.detach().clone()
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            state[f"{norm_name}.{part}"] = norm.state_dict()[part].clone()
    state[f"{classifier}.weight"] = network.classifier.weight.detach().clone()
    state[f"{classifier}.bias"] = network.classifier.bias.detach().clone()
    return state


@pytest.mark.parametrize(
    ("names", "classifier", "choices", "mean"),
    [
        (timm_names, "classifier", {"activation": "relu6"}, 0.5),
        (
            hugging_face_names,
            "classifier",
            {"activation": "relu6", "padding": "tensorflow", "batch_norm_epsilon": 1e-3},
            0.5,
        ),
        (kuangliu_names, "linear", {"total_stride": 16}, 0.4914),
        (marvis_names, "fc", {}, 0.485),
    ],
)
@pytest.mark.parametrize("form", ["pickle", "safetensors", "wrapped"])
def test_torch_dialects(tmp_path, names, classifier, choices, mean, form):
    """Also sorted by name, as safetensors keeps them, and as a trainer with several GPUs wraps them."""
    theirs = random_network(**choices)
    state = exported(theirs, names, classifier)
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        state = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "state_dict": state, "best": 0.7}, path)
    else:
        torch.save(state, path)
    imported = import_weights([path], labels=list("abcdefg"), said=Said(resolution=64))
    assert imported.spec == theirs.spec
    assert imported.labels == tuple("abcdefg")
    assert imported.preprocessing.mean[0] == mean
    assert_same(loaded(imported), theirs)


def test_an_unknown_project_needs_its_activation(tmp_path):
    theirs = random_network(activation="leaky")
    path = tmp_path / "model.pth"
    torch.save(exported(theirs, unknown_names, "head"), path)
    with pytest.raises(ValueError, match="give it with --activation relu, relu6 or leaky"):
        import_weights([path])
    imported = import_weights([path], said=Said(activation="leaky", resolution=64))
    assert imported.spec == theirs.spec
    assert_same(loaded(imported), theirs)


def test_a_bias_before_a_batch_norm_is_not_lost(tmp_path):
    """PyTorch's convolutions have one unless told otherwise."""
    theirs = random_network(activation="relu6")
    state = exported(theirs, timm_names, "classifier")
    for name in [name for name in state if name.endswith("running_mean")]:
        shift = torch.randn_like(state[name])
        state[name] += shift
        conv = name.removesuffix(".running_mean").replace("bn1", "conv_dw")
        conv = "conv_stem" if conv == "conv_dw" else conv.replace("bn2", "conv_pw")
        state[f"{conv}.bias"] = shift
    torch.save(state, tmp_path / "model.pth")
    assert_same(loaded(import_weights([tmp_path / "model.pth"], said=Said(resolution=64))), theirs)


class CifarBlock(torch.nn.Module):
    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class CifarMobileNet(torch.nn.Module):
    """As kuangliu/pytorch-cifar builds it: for 32 pixels, the first layer with stride 1."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(32)
        rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
        rows += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
        blocks, channels = [], 32
        for out_channels, stride in rows:
            blocks.append(CifarBlock(channels, out_channels, stride))
            channels = out_channels
        self.layers = torch.nn.Sequential(*blocks)
        self.linear = torch.nn.Linear(1024, 10)

    def forward(self, x):
        x = self.layers(self.bn1(self.conv1(x)).relu())
        return self.linear(torch.nn.functional.avg_pool2d(x, 2).flatten(1))


def test_a_network_for_cifar_keeps_its_strides_and_statistics(tmp_path):
    torch.manual_seed(1)
    theirs = CifarMobileNet()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.7, 1.6)
            torch.nn.init.normal_(module.bias, std=0.3)
    # Statistics of real maps, so that no layer is dead and every stride shows.
    theirs.train()(torch.randn(32, 3, 32, 32))
    assert theirs.eval()(torch.randn(8, 3, 32, 32)).std(0).max() > 1e-2
    torch.save({"net": theirs.state_dict(), "acc": 92.0}, tmp_path / "ckpt.pth")
    imported = import_weights([tmp_path / "ckpt.pth"])
    assert str(imported.spec) == "1.0-32-s16"
    assert imported.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert imported.preprocessing.crop_fraction == 1
    assert_same(loaded(imported), theirs, [(32, 32)])


def test_what_weights_cannot_tell_can_be_said(tmp_path):
    choices = {"padding": "keras", "batch_norm_epsilon": 0.01, "total_stride": 8}
    theirs = random_network(activation="leaky", **choices)
    path = tmp_path / "model.pth"
    torch.save(exported(theirs, unknown_names, "head"), path)
    said = parse_said(
        activation="leaky", channels="BGR", mean="0.4,0.5,0.6", std="0.25", resolution=64, **choices
    )
    imported = import_weights([path], said=said)
    assert imported.spec == theirs.spec
    served = imported.preprocessing
    assert (served.channels, served.mean) == ("BGR", (0.4, 0.5, 0.6))
    assert served.std == (0.25, 0.25, 0.25)
    assert_same(loaded(imported), theirs, [(64, 64)])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"activation": "elu"}, "the activation is relu, relu6 or leaky, not 'elu'"),
        ({"padding": "same"}, "the padding is torch, tensorflow or keras, not 'same'"),
        ({"channels": "RBG"}, "the order of channels is RGB, BGR, L or RGBA, not 'RBG'"),
        ({"mean": "0,5;0"}, "mean is one number or one a channel"),
    ],
)
def test_what_can_not_be_said(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_said(**given)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (Said(activation="leaky"), "its activation is relu6, not leaky"),
        (Said(padding="tensorflow"), "its padding is torch, not tensorflow"),
        (Said(total_stride=16), "its total stride is 32, not 16"),
        (Said(mean=(0.1, 0.2)), "RGB needs 3 means"),
        (Said(channels="L"), "L needs 1 means"),
    ],
)
def test_what_is_said_against_the_file_is_refused(tmp_path, said, sentence):
    torch.save(exported(random_network(), timm_names, "classifier"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=sentence):
        import_weights([tmp_path / "model.pth"], said=said)


def test_timm_settings_beside_the_weights(tmp_path):
    theirs = random_network(activation="relu6")
    save_file(exported(theirs, timm_names, "classifier"), tmp_path / "model.safetensors")
    served = {"input_size": [3, 256, 256], "crop_pct": 0.95, "interpolation": "bilinear"}
    served |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"architecture": "x", "pretrained_cfg": served, "label_names": list("abcdefg")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    imported = import_weights([tmp_path / "model.safetensors"])
    assert str(imported.spec) == "0.25-256"
    assert imported.labels == tuple("abcdefg")
    assert imported.preprocessing.mean == (0.1, 0.2, 0.3)
    assert imported.preprocessing.crop_fraction == 0.95
    # What is asked for comes before what the file says of the size.
    other = import_weights([tmp_path / "model.safetensors"], said=Said(resolution=128))
    assert (str(other.spec), other.preprocessing.width) == ("0.25-128", 128)


# Case 3: width 0.35 begins with 11 channels or with 16, as its rounding says. Case 11: 1 and 4 input channels.
@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("0.35-64", {}),
        ("0.35-64", {"rounding": "divisible8"}),
        ("0.25-64", {"input_channels": 1}),
        ("0.25-64", {"input_channels": 4}),
        ("0.6-64", {}),
        ("1.25-64", {}),
        ("0.25-64-shallow", {}),
        ("0.25-64-fullconv", {}),
        ("0.1-64", {"rounding": "keras"}),
    ],
)
def test_members_of_the_family_are_known_by_their_shapes(tmp_path, name, choices):
    theirs = random_network(name, **choices)
    path = tmp_path / "model.pth"
    torch.save(exported(theirs, unknown_names, "fc"), path)
    imported = import_weights([path], said=Said(activation="relu", resolution=64))
    assert imported.spec.width == theirs.spec.width
    assert [layer.out_channels for layer in layers_of(imported.spec)] == [
        layer.out_channels for layer in layers_of(theirs.spec)
    ]
    assert imported.spec.input_channels == theirs.spec.input_channels
    assert_same(loaded(imported), theirs)


def test_hugging_face_settings_beside_the_weights(tmp_path):
    theirs = random_network(activation="relu", padding="torch", batch_norm_epsilon=0.01)
    torch.save(exported(theirs, hugging_face_names, "classifier"), tmp_path / "pytorch_model.bin")
    labels = {str(index): f"label {index}" for index in range(7)}
    config = {"hidden_act": "relu", "tf_padding": False, "layer_norm_eps": 0.01, "id2label": labels}
    # Case 7: the dropout and the momentum of transformers#22767, the wrong way round, are not taken over.
    config |= {"classifier_dropout_prob": 0.999, "image_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    served = {
        "crop_size": {"height": 64, "width": 64},
        "size": {"shortest_edge": 80},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(served))
    imported = import_weights([tmp_path / "pytorch_model.bin"])
    assert imported.spec == theirs.spec
    assert imported.labels[3] == "label 3"
    assert imported.preprocessing.mean == (0.1, 0.2, 0.3)
    assert imported.preprocessing.crop_fraction == pytest.approx(64 / 80)
    assert_same(loaded(imported), theirs)
    network = loaded(imported)
    assert network.dropout.p == 0.001
    assert {m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize(
    ("served", "side", "fraction"),
    [
        ({"size": 64, "crop_size": 56}, 56, 56 / 64),
        ({"size": {"height": 64, "width": 64}}, 48, 48 / 64),
        ({}, 48, 0.875),
    ],
)
def test_older_forms_of_hugging_face_settings(tmp_path, served, side, fraction):
    theirs = random_network(activation="relu6", padding="tensorflow", batch_norm_epsilon=1e-3)
    save_file(exported(theirs, hugging_face_names, "classifier"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 48}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(served))
    imported = import_weights([tmp_path / "model.safetensors"])
    assert imported.preprocessing.height == imported.spec.height == side
    assert imported.preprocessing.crop_fraction == pytest.approx(fraction)


@pytest.mark.parametrize("served", [{"size": "large"}, {"image_mean": 3}, {"crop_size": [1, 2]}])
def test_settings_that_are_none_get_one_sentence(tmp_path, served):
    save_file(
        exported(random_network(), hugging_face_names, "classifier"), tmp_path / "model.safetensors"
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(served))
    with pytest.raises(
        ValueError, match=r"\A[^\n]+: the settings beside the weights are not as[^\n]+\Z"
    ):
        import_weights([tmp_path / "model.safetensors"])


# Case 6: of 1,001 outputs index 0 is TensorFlow's background (tensorflow/hub#574).


@pytest.mark.parametrize("keep", [False, True])
def test_the_background_goes_or_is_named_and_nothing_is_shifted(tmp_path, keep):
    theirs = random_network(classes=1001, activation="relu6")
    path = tmp_path / "model.pth"
    torch.save(exported(theirs, timm_names, "classifier"), path)
    imported = import_weights([path], keep_background=keep, said=Said(resolution=64))
    assert imported.classes == len(imported.labels) == 1000 + keep
    assert imported.labels[:2] == (("background", "tench") if keep else ("tench", "goldfish"))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(images)[:, 0 if keep else 1 :]
        torch.testing.assert_close(loaded(imported)(images), expected, rtol=1e-4, atol=1e-4)


# Keras.


def keras_layers(network):
    """Layers of Keras Applications in order: name, weight names and arrays."""
    for layer, conv, norm in units(network):
        number = layer.name.removeprefix("block").split(".")[0]
        kind = {"conv": "conv1", "depthwise": f"conv_dw_{number}", "pointwise": f"conv_pw_{number}"}
        name = kind[layer.type]
        weight = conv.weight.detach().numpy()
        axes = (2, 3, 0, 1) if layer.type == "depthwise" else (2, 3, 1, 0)
        part = "depthwise_kernel" if layer.type == "depthwise" else "kernel"
        yield name, [part], [weight.transpose(axes)]
        values = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        parts = ["gamma", "beta", "moving_mean", "moving_variance"]
        yield f"{name}_bn", parts, [value.detach().numpy() for value in values]
    if isinstance(network.classifier, torch.nn.Linear):
        weight = network.classifier.weight.detach().numpy().T[None, None]
        yield "conv_preds", ["kernel", "bias"], [weight, network.classifier.bias.detach().numpy()]


def write_keras_2(network, path, below=None):
    with h5py.File(path, "w") as file:
        root = file if below is None else file.create_group(below)
        names = []
        for name, parts, arrays in keras_layers(network):
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{part}:0".encode() for part in parts]
            for part, array in zip(parts, arrays, strict=True):
                group[f"{name}/{part}:0"] = array
            # Layers without weights stand between the others.
            root.create_group(f"{name}_relu").attrs["weight_names"] = np.array([], dtype="S1")
            names += [name.encode(), f"{name}_relu".encode()]
        root.attrs["layer_names"] = names


def write_keras_3(network, path):
    counts = {}
    with h5py.File(path, "w") as file:
        for name, parts, arrays in keras_layers(network):
            kind = {"kernel": "conv2d", "depthwise_kernel": "depthwise_conv2d"}.get(
                parts[0], "batch_normalization"
            )
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            place = f"layers/{kind}" + (f"_{number}" if number else "") + "/vars"
            for index, array in enumerate(arrays):
                file[f"{place}/{index}"] = array
            del name


@pytest.mark.parametrize("classes", [7, None])
@pytest.mark.parametrize("form", ["h5", "whole h5", "weights.h5", "keras"])
def test_keras_files(tmp_path, classes, form):
    choices = {"activation": "relu6", "padding": "keras", "batch_norm_epsilon": 1e-3}
    theirs = random_network(classes=classes, **choices)
    path = tmp_path / f"model.{form.split()[-1]}"
    if form in ("h5", "whole h5"):
        write_keras_2(theirs, path, "model_weights" if form == "whole h5" else None)
    else:
        write_keras_3(theirs, path)
    if form == "keras":
        weights = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("model.weights.h5", weights)
    imported = import_weights([path], said=Said(resolution=64), labels=list("abcdefg"))
    assert imported.spec == theirs.spec
    assert imported.classes == classes
    assert imported.preprocessing.std == (0.5, 0.5, 0.5)
    assert_same(loaded(imported), theirs)


def test_keras_file_names_tell_the_resolution(tmp_path):
    path = tmp_path / "mobilenet_2_5_160_tf.h5"
    write_keras_2(random_network(activation="relu6", padding="keras"), path)
    assert str(import_weights([path]).spec) == "0.25-160"


@pytest.mark.parametrize("form", ["whole h5", "keras"])
def test_a_whole_keras_file_tells_the_resolution(tmp_path, form):
    theirs = random_network(activation="relu6", padding="keras", batch_norm_epsilon=1e-3)
    path = tmp_path / f"model.{form.split()[-1]}"
    key = "batch_shape" if form == "keras" else "batch_input_shape"
    config = json.dumps({"config": {"layers": [{"config": {key: [None, 128, 96, 3]}}]}})
    if form == "keras":
        write_keras_3(theirs, path)
        weights = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", config)
            archive.writestr("model.weights.h5", weights)
    else:
        write_keras_2(theirs, path, "model_weights")
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = config
    imported = import_weights([path])
    assert (imported.preprocessing.height, imported.preprocessing.width) == (128, 96)
    assert imported.spec.resolution == (128, 96)
    assert import_weights([path], said=Said(resolution=64)).spec.resolution == 64


# TensorFlow Lite, files of every kind of number, each in LiteRT beside the network that is read from it.


def lite_outputs(path, images_NCHW):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    outputs = []
    for image in images_NCHW:
        given = image.permute(1, 2, 0)[None].contiguous().numpy()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], given)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return torch.from_numpy(np.stack(outputs))


@pytest.mark.parametrize("side", [64, 65])
@pytest.mark.parametrize("padding", ["tensorflow", "keras", "torch"])
@pytest.mark.parametrize("weights", ["float32", "float16"])
def test_float_tflite_files(tmp_path, side, padding, weights):
    theirs = random_network(f"0.25-{side}", activation="relu6", padding=padding)
    write_tflite(theirs, tmp_path / "model.tflite", weights)
    imported = import_weights([tmp_path / "model.tflite"], labels=list("abcdefg"))
    assert (str(imported.spec), imported.spec.padding) == (f"0.25-{side}", padding)
    images = torch.randn(3, 3, side, side)
    with torch.inference_mode():
        ours = loaded(imported)(images)
    torch.testing.assert_close(
        ours, lite_outputs(tmp_path / "model.tflite", images), rtol=1e-4, atol=1e-4
    )


def test_int8_tflite_files_with_a_scale_a_channel(tmp_path):
    theirs = random_network(activation="relu")
    write_tflite(theirs, tmp_path / "model.tflite", "int8")
    imported = import_weights([tmp_path / "model.tflite"], labels=list("abcdefg"))
    for layer, conv, norm in units(theirs):
        weight = folded(conv, norm)[0].numpy()
        kept, scales = quantised(weight, 0)
        ours = imported.state[f"body.{layer.name}.conv.weight"].numpy()
        np.testing.assert_allclose(ours, kept * scales, rtol=1e-6)
    images = torch.randn(8, 3, 64, 64)
    with torch.inference_mode():
        ours = loaded(imported)(images)
    # LiteRT rounds the activations of such a file as it goes.
    lite = lite_outputs(tmp_path / "model.tflite", images)
    assert np.corrcoef(ours.flatten(), lite.flatten())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("scale", "zero", "black", "white"),
    [(1 / 255, -128, 0, 1), (2 / 255, 0, -256 / 255, 254 / 255), (1.0, -128, 0, 255)],
)
def test_the_scale_of_a_signed_input(tmp_path, scale, zero, black, white):
    given = schema.QuantizationParametersT(scale=[scale], zeroPoint=[zero])
    write_tflite(random_network(activation="relu6"), tmp_path / "model.tflite", "int8", given)
    served = import_weights([tmp_path / "model.tflite"], labels=list("abcdefg")).preprocessing
    assert served.scaled(0) == pytest.approx(black, abs=1e-6)
    assert served.scaled(255) == pytest.approx(white, abs=1e-5)


def changed_tflite(path, change):
    """A file with something in its first graph altered."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def set_option(name, value):
    def change(model):
        operators = model.subgraphs[0].operators
        setattr(operators[3].builtinOptions, name, value)

    return change


def set_code(code):
    def change(model):
        model.operatorCodes[-1].deprecatedBuiltinCode = min(code, 127)
        model.operatorCodes[-1].builtinCode = code

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (set_code(schema.BuiltinOperator.GELU), "operator 28 is GELU, which MobileNet V1 does not"),
        (set_option("dilationHFactor", 2), "block2.depthwise is dilated"),
        (set_option("strideH", 1), "is dilated, or has two strides"),
        (set_option("fusedActivationFunction", 4), "neither ReLU nor ReLU6"),
        (lambda m: m.subgraphs.append(m.subgraphs[0]), "it has 2 graphs"),
    ],
)
def test_tflite_files_of_other_networks(tmp_path, change, sentence):
    write_tflite(random_network(activation="relu6", padding="tensorflow"), tmp_path / "m.tflite")
    changed_tflite(tmp_path / "m.tflite", change)
    with pytest.raises(ValueError, match=sentence):
        import_weights([tmp_path / "m.tflite"])


def test_a_stride_in_another_place_is_not_overlooked(tmp_path):
    write_tflite(random_network(activation="relu6", padding="tensorflow"), tmp_path / "m.tflite")

    def swap(model):
        for index, stride in ((3, 1), (5, 2)):
            options = model.subgraphs[0].operators[index].builtinOptions
            options.strideH = options.strideW = stride

    changed_tflite(tmp_path / "m.tflite", swap)
    with pytest.raises(ValueError, match=r"depthwise has stride 1 where 0.25-64 has 2"):
        import_weights([tmp_path / "m.tflite"])


# TensorFlow Lite, on Google's own models.


@pytest.mark.parametrize("name", CORAL)
def test_coral_models(shared, name):
    paths = [shared / "weights" / file for file in CORAL[name]]
    imported = import_weights(paths)
    spec = imported.spec
    assert (str(spec), spec.activation, spec.padding) == (name, "relu6", "tensorflow")
    assert imported.classes == len(imported.labels) == 1000
    # (q - 128) / 128: the file's own scale, a little off x / 127.5 - 1.
    assert imported.preprocessing.scaled(128) == pytest.approx(0)
    assert imported.preprocessing.scaled(255) == pytest.approx(127 / 128)
    assert (imported.preprocessing.height, imported.preprocessing.width) == (spec.height,) * 2


@pytest.mark.parametrize(
    ("files", "every", "least"),
    # What the same weights reached, dequantised: 44.6 %; LeakyReLU 52.4 %, and 1.6 % as a ReLU.
    [(CORAL["0.25-128"], 4, 0.38), ([RETINAFACE], 4, 0.48)],
)
def test_imported_models_recognise_real_photos(shared, files, every, least):
    imported = import_weights([shared / "weights" / file for file in files])
    network = loaded(imported)
    right = images = 0
    with tarfile.open(shared / "data" / "imagenet_samples.tar") as archive:
        photos = sorted(
            (m for m in archive if m.name.lower().endswith((".jpg", ".jpeg"))), key=lambda m: m.name
        )
        assert len(photos) == 1000
        for target in range(0, 1000, every):
            with Image.open(archive.extractfile(photos[target])) as photo:
                pixels = fit(image_to_tensor(photo, 3), imported.preprocessing)
            with torch.inference_mode():
                outputs = network(normalise(pixels[None], imported.preprocessing))
            right += int(outputs.argmax()) == target
            images += 1
    assert right / images > least


# What is wrong with a file, in one sentence.


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch code-was-run",)


def test_a_pickle_with_code_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(
        ValueError, match=r"model\.pth: it holds \w+\.system, and .* can run code\Z"
    ):
        import_weights([path])
    path.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises(ValueError, match=r"model\.pth: [^\n]+\Z"):
        import_weights([path])
    assert not (tmp_path / "code-was-run").exists()


def test_damaged_pytorch_files_are_one_sentence(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(MobileNet(MobileNetSpec(0.25), 10).state_dict(), path)
    content = path.read_bytes()
    for length in (0, 3, 100, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=r"model\.pth: damaged, cut short, or not a file that PyTorch wrote\Z"
        ):
            import_weights([path])


def test_damaged_files_are_one_sentence(shared, tmp_path):
    content = (shared / "weights" / CORAL["0.25-128"][0]).read_bytes()
    for length in (6, 9, 100, 5000, len(content) // 2):
        path = tmp_path / "model.tflite"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.tflite: "):
            import_weights([path])
    theirs = random_network(activation="relu6", padding="keras")
    write_keras_2(theirs, tmp_path / "whole.h5")
    content = (tmp_path / "whole.h5").read_bytes()
    for length in (8, 100, len(content) // 2):
        path = tmp_path / "model.h5"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.h5: not a whole Keras file"):
            import_weights([path])


def test_half_a_model_says_so(shared):
    body, head = (shared / "weights" / file for file in CORAL["1.0-224"])
    imported = import_weights([body])
    assert imported.classes is None
    assert imported.labels == ()
    with pytest.raises(ValueError, match="name the file with the body before it"):
        import_weights([head])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s.pop("bn1.running_mean"), "bn1.running_mean is missing"),
        (lambda s: s.pop("blocks.4.1.conv_pw.weight"), "26 convolutions"),
        (
            lambda s: s.update({"blocks.2.0.conv_pw.weight": torch.zeros(64, 31, 1, 1)}),
            r"blocks.2.0.conv_pw is \(64, 31, 1, 1\) where 0.25-224 has \(64, 32, 1, 1\)",
        ),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), r"weight has shape \(3,\) for 8"),
        (lambda s: s.update({"classifier.weight": torch.zeros(7, 5)}), "takes 5 features"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, spoil, sentence):
    state = exported(random_network(), timm_names, "classifier")
    spoil(state)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=sentence):
        import_weights([tmp_path / "model.pth"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "it holds a list"),
        ({"epoch": 3}, "it holds no weights by name"),
        ({"w": torch.zeros(3)}, "it has no convolutions"),
    ],
)
def test_files_of_something_else(tmp_path, content, sentence):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=sentence):
        import_weights([tmp_path / "model.pth"])


def test_other_networks_are_told_before_anything_is_asked(tmp_path):
    from torchvision.models import resnet18, vgg11

    torch.save(resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="not a MobileNet V1, conv1 is"):
        import_weights([tmp_path / "resnet.pth"])
    state = {k: v for k, v in vgg11().state_dict().items() if k.startswith("features")}
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match="not a MobileNet V1, it has no batch norms"):
        import_weights([tmp_path / "vgg.pth"])
    torch.save({"grid": torch.zeros(1, 2, 3, 4)}, tmp_path / "grid.pth")
    with pytest.raises(ValueError, match="it has no convolutions"):
        import_weights([tmp_path / "grid.pth"])


def test_keras_files_of_other_networks(tmp_path):
    with h5py.File(tmp_path / "vgg.h5", "w") as file:
        group = file.create_group("block1_conv1")
        group.attrs["weight_names"] = [b"kernel", b"bias"]
        group["kernel"], group["bias"] = np.zeros((3, 3, 3, 64)), np.zeros(64)
        file.attrs["layer_names"] = [b"block1_conv1", b"block1_conv1"]
    with pytest.raises(ValueError, match="block1_conv1 is no layer of Keras' MobileNet"):
        import_weights([tmp_path / "vgg.h5"])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["layers"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"other\.h5: not a whole Keras file"):
        import_weights([tmp_path / "other.h5"])


def test_an_archive_whose_list_is_damaged(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(exported(random_network(), timm_names, "classifier"), path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place : place + 4] = b"XXXX"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth: damaged"):
        import_weights([path])


def test_labels_must_be_as_many_as_outputs(tmp_path):
    torch.save(exported(random_network(), timm_names, "classifier"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="7 outputs but 2 labels"):
        import_weights([tmp_path / "model.pth"], labels=["a", "b"])


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no such weights file"):
        import_weights([tmp_path / "model.h5"])
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="in TensorFlow Lite's format only"):
        import_weights([tmp_path / "a.pth", tmp_path / "a.pth"])
