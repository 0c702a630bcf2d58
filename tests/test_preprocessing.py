"""Preprocessing travels as JSON with every model, and refuses what would spoil the input."""

import json
from dataclasses import replace

import pytest

from mobilenets.architecture.preprocessing import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(224, 224),
        # Not square: height and width must not change places.
        Preprocessing(97, 161, crop_fraction=1.0),
        # Every field away from its default, and numbers that binary floats do not hold exactly.
        Preprocessing(64, 32, "BGR", "squash", 0.1, "bicubic", **IMAGENET),
        Preprocessing(28, 28, "L", mean=(0.1307,), std=(0.3081,)),
        Preprocessing(32, 32, "RGBA", interpolation="nearest", mean=(0.0,) * 4, std=(1.0,) * 4),
    ],
)
def test_round_trip(preprocessing):
    written = json.loads(json.dumps(preprocessing.to_dict()))
    read = Preprocessing.from_dict(written)
    assert read == preprocessing
    # Lists of JSON became tuples again: a frozen value can be a key.
    assert hash(read) == hash(preprocessing)


def test_as_written():
    # The keys stand in files that others read.
    assert Preprocessing(160, 96).to_dict() == {
        "height": 160,
        "width": 96,
        "channels": "RGB",
        "resize": "crop",
        "crop_fraction": 0.875,
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


@pytest.mark.parametrize(("channels", "count"), [("L", 1), ("RGB", 3), ("BGR", 3), ("RGBA", 4)])
def test_channel_count(channels, count):
    half = (0.5,) * count
    assert Preprocessing(8, 8, channels, mean=half, std=half).channel_count == count


@pytest.mark.parametrize(
    ("values", "pixel", "channel", "expected"),
    [
        # TensorFlow-Slim's [-1, 1].
        ({}, 0, 0, -1.0),
        ({}, 255, 2, 1.0),
        ({}, 127.5, 1, 0.0),
        # torchvision's, whose channels differ.
        (IMAGENET, 0, 0, -0.485 / 0.229),
        (IMAGENET, 255, 2, (1 - 0.406) / 0.225),
    ],
)
def test_scaled(values, pixel, channel, expected):
    assert Preprocessing(8, 8, **values).scaled(pixel, channel) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": "rgb"}, "channels must be one of RGB, BGR, L, RGBA, not 'rgb'"),
        ({"channels": "CMYK"}, "'CMYK'"),
        ({"resize": "pad"}, "resize must be one of squash, crop, not 'pad'"),
        ({"interpolation": "lanczos"}, "interpolation must be one of bilinear, bicubic, nearest"),
        # Means for one channel more or less than there are.
        ({"channels": "L"}, "L needs 1 means and 1 deviations, not 3 and 3"),
        ({"std": (1.0, 1.0)}, "RGB needs 3 means and 3 deviations, not 3 and 2"),
        ({"mean": ()}, "not 0 and 3"),
        # 87.5 % is 0.875.
        ({"crop_fraction": 87.5}, "crop_fraction must lie in"),
        ({"crop_fraction": 0.0}, "crop_fraction must lie in"),
        ({"crop_fraction": float("nan")}, "crop_fraction must lie in"),
        ({"height": 0}, "height and width must be at least 1, not 0 and 224"),
        ({"width": -1}, "height and width must be at least 1, not 224 and -1"),
        # Divided by, a deviation of 0 gives inf in every pixel.
        ({"std": (0.5, 0.0, 0.5)}, "deviations must be above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, "deviations must be above 0"),
        ({"mean": (0.5, float("inf"), 0.5)}, "means must be finite"),
    ],
)
def test_wrong_values(change, message):
    right = Preprocessing(224, 224)
    with pytest.raises(ValueError, match=rf"^preprocessing: .*({message})") as caught:
        replace(right, **change)
    assert "\n" not in str(caught.value)
    # A file with the same fault is refused in the same words.
    with pytest.raises(ValueError) as again:
        Preprocessing.from_dict(right.to_dict() | change)
    assert str(again.value) == str(caught.value)
