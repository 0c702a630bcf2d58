"""Weights that timm, transformers and Keras wrote themselves, against their own outputs.

The networks are new, with random weights and random batch-norm statistics, so that nothing can agree by chance.
The three are needed here only; the library reads their files without them.
"""

import os
import warnings

import numpy as np
import pytest
import torch

# Read when Keras is imported, which nothing else here does.
os.environ["KERAS_BACKEND"] = "torch"

from mobilenets.architecture.network import MobileNet
from mobilenets.weights.files import import_weights
from mobilenets.weights.imported import Said

SIDES = (224, 225)


def shaken(state):
    """Weights and statistics that all differ from a new network's."""
    generator = torch.Generator().manual_seed(5)
    for key, value in state.items():
        if key.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) * 1.5 + 0.5)
        elif key.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
        elif value.ndim == 1 and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def images(side):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


@torch.inference_mode()
def assert_same(imported, theirs):
    """Logits equal to 1e-4, at an even and an odd side."""
    network = MobileNet(imported.spec, imported.classes).eval()
    network.load_state_dict(imported.state)
    for side in SIDES:
        x = images(side)
        expected = theirs(x)
        assert expected.std() > 1e-3
        assert (network(x) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["mobilenetv1_100", "mobilenetv1_125"])
def test_timm(name, tmp_path):
    import timm
    from safetensors.torch import save_file

    model = timm.create_model(name, pretrained=False).eval()
    shaken(model.state_dict())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    for file in ("model.safetensors", "model.pth"):
        imported = import_weights([tmp_path / file])
        assert imported.spec.activation == "relu6"
        assert imported.preprocessing.interpolation == "bicubic"
        assert_same(imported, model)


def test_timm_with_a_layer_of_its_own_is_told_apart(tmp_path):
    import timm

    model = timm.create_model("mobilenetv1_100h", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        import_weights([tmp_path / "model.pth"])


@pytest.mark.parametrize("width", [1.0, 0.75])
def test_transformers(width, tmp_path):
    import transformers

    config = transformers.MobileNetV1Config(depth_multiplier=width, num_labels=1001)
    model = transformers.MobileNetV1ForImageClassification(config).eval()
    shaken(model.state_dict())
    model.save_pretrained(tmp_path)
    imported = import_weights([tmp_path / "model.safetensors"], keep_background=True)
    assert imported.spec.padding == "tensorflow"
    assert imported.spec.width == width
    assert_same(imported, lambda x: model(x).logits)
    # Without the background, classes keep their names.
    fewer = import_weights([tmp_path / "model.safetensors"])
    assert fewer.classes == 1000
    assert fewer.state["classifier.weight"].equal(imported.state["classifier.weight"][1:])


@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("form", ["m.weights.h5", "m.keras", "m.h5"])
def test_keras(alpha, form, tmp_path):
    with warnings.catch_warnings():
        # What Keras warns of when it is imported or writes HDF5 is its own affair.
        warnings.simplefilter("ignore")
        import keras

        random = np.random.default_rng(2)

        def build(side):
            return keras.applications.MobileNet(
                input_shape=(side, side, 3),
                alpha=alpha,
                weights=None,
                classifier_activation=None,
            )

        model = build(224)
        values = []
        for variable in model.variables:
            value = np.asarray(variable.numpy())
            if value.ndim == 1:
                value = random.uniform(0.5, 1.5, value.shape)
            values.append(value.astype(np.float32))
            variable.assign(values[-1])
        path = tmp_path / form
        model.save_weights(path) if form.endswith("weights.h5") else model.save(path)
        others = {224: model, 225: build(225)}
        for variable, value in zip(others[225].variables, values, strict=True):
            variable.assign(value)

        def theirs(x):
            given = x.permute(0, 2, 3, 1).numpy()
            outputs = others[x.shape[-1]](given, training=False)
            return torch.from_numpy(np.asarray(outputs.detach().cpu().numpy()))

        imported = import_weights([path], labels=[f"c{i}" for i in range(1000)])
        assert imported.spec.padding == "keras"
        with torch.no_grad():
            assert_same(imported, theirs)


def test_keras_without_a_classifier(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

        model = keras.applications.MobileNet(
            input_shape=(128, 128, 3), alpha=0.5, weights=None, include_top=False
        )
        model.save_weights(tmp_path / "m.weights.h5")
    imported = import_weights([tmp_path / "m.weights.h5"], said=Said(resolution=128))
    assert imported.classes is None
    assert str(imported.spec) == "0.5-128"
