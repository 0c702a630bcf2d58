"""Weights from a file of any project that is known, recognised by what is in it and not by its name."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from mobilenets.architecture.spec import Activation
from mobilenets.weights.imported import BACKGROUND, ForeignWeights, ImportedWeights, fit

_TFLITE, _HDF5 = b"TFL3", b"\x89HDF"


def import_weights(
    paths: Sequence[Path],
    *,
    labels: Sequence[str] = (),
    activation: Activation | None = None,
    resolution: int | None = None,
    keep_background: bool = False,
) -> ImportedWeights:
    """Read weights of TensorFlow Lite, Keras, timm, Hugging Face or a PyTorch re-implementation.

    Args:
        paths: one file; of TensorFlow Lite also several that hold the model in turn, body first.
        labels: class names, where the file has none; ImageNet's by default for 1,000 classes.
        activation: where the weights of a project can't tell.
        resolution: input side, where the file can't tell; 224 by default.
        keep_background: keep TensorFlow's class 0 of 1,001.

    Raises:
        ValueError: one sentence that names the file and says what is wrong with it.
        ImportError: a package that knows the format is missing; it says how to install it.
    """
    kinds = {_kind(path) for path in paths}
    if kinds == {"tflite"}:
        from mobilenets.weights.tflite_file import read_tflite

        foreign = read_tflite(paths)
    elif len(paths) != 1:
        raise ValueError("several files make one model in TensorFlow Lite's format only")
    elif kinds == {"keras"}:
        from mobilenets.weights.keras_file import read_keras

        foreign = read_keras(paths[0], resolution=resolution)
    else:
        from mobilenets.weights.torch_file import read_torch

        foreign = read_torch(paths[0], activation=activation, resolution=resolution or 224)
    return fit(_labelled(foreign, labels), keep_background=keep_background)


def activation_choice(text: str | None) -> Activation | None:
    """Check an activation that someone wrote.

    Raises:
        ValueError: there is no such activation.
    """
    if text is None or text in get_args(Activation):
        return cast(Activation | None, text)
    raise ValueError(f"the activation is relu, relu6 or leaky, not {text!r}")


def read_labels(path: Path) -> list[str]:
    """Class names from a text file, one a line.

    Raises:
        ValueError: the file is missing or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a list of labels ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def imagenet_labels() -> list[str]:
    """The names of ImageNet's 1,000 classes in their usual order, as torchvision has them.

    >>> imagenet_labels()[0], len(imagenet_labels())
    ('tench', 1000)
    """
    from torchvision.models import MobileNet_V2_Weights

    return list(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def _kind(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:8] == _TFLITE:
        return "tflite"
    if start.startswith(_HDF5):
        return "keras"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "keras" if "model.weights.h5" in archive.namelist() else "torch"
    return "torch"


def _labelled(foreign: ForeignWeights, labels: Sequence[str]) -> ForeignWeights:
    """With the labels that were given, else the file's own, else ImageNet's where the count says so."""
    if foreign.classifier is None:
        return replace(foreign, labels=())
    outputs = len(foreign.classifier[0])
    chosen = list(labels) or list(foreign.labels)
    if not chosen and outputs in (BACKGROUND - 1, BACKGROUND):
        chosen = imagenet_labels()
    if len(chosen) == outputs - 1 == BACKGROUND - 1:
        chosen = ["background", *chosen]
    return replace(foreign, labels=chosen)
