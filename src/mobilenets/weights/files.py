"""Weights from a file of any project that is known, recognised by what is in it and not by its name."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from mobilenets.architecture.body import Padding
from mobilenets.architecture.preprocessing import ChannelOrder
from mobilenets.architecture.spec import Activation
from mobilenets.weights.imported import (
    BACKGROUND,
    ForeignWeights,
    ImportedWeights,
    Said,
    fit,
)

_TFLITE, _HDF5 = b"TFL3", b"\x89HDF"
NOTHING_SAID = Said()


def import_weights(
    paths: Sequence[Path],
    *,
    labels: Sequence[str] = (),
    said: Said = NOTHING_SAID,
    keep_background: bool = False,
) -> ImportedWeights:
    """Read weights of TensorFlow Lite, Keras, timm, Hugging Face or a PyTorch re-implementation.

    Args:
        paths: one file; of TensorFlow Lite also several that hold the model in turn, body first.
        labels: class names, where the file has none; ImageNet's by default for 1,000 classes.
        said: what the file can't tell, such as the activation of an unknown project's weights.
        keep_background: keep TensorFlow's class 0 of 1,001.

    Raises:
        ValueError: one sentence that names the file and says what is wrong with it.
        ImportError: a package that knows the format is missing; it says how to install it.
    """
    kinds = {_kind(path) for path in paths}
    if kinds == {"tflite"}:
        from mobilenets.weights.tflite_file import is_detector, read_tflite, read_tflite_detector

        if len(paths) == 1 and is_detector(paths[0]):
            from mobilenets.weights.imported_detector import fit_detector

            return fit_detector(read_tflite_detector(paths[0], labels).as_said(said))
        foreign = read_tflite(paths)
    elif len(paths) != 1:
        raise ValueError("several files make one model in TensorFlow Lite's format only")
    elif kinds == {"keras"}:
        from mobilenets.weights.keras_file import read_keras

        foreign = read_keras(paths[0], resolution=said.resolution)
    else:
        from mobilenets.weights.torch_file import read_torch

        foreign = read_torch(paths[0], resolution=said.resolution)
    foreign = _labelled(foreign.as_said(said), labels)
    if foreign.activation is None:
        # A network of another family is told first.
        fit(replace(foreign, activation="relu"))
        raise ValueError(
            f"{foreign.origin}: its layers are named as in no project that is known, and weights don't tell "
            "the activation: give it with --activation relu, relu6 or leaky"
        )
    return fit(foreign, keep_background=keep_background)


def parse_said(
    *,
    activation: str | None = None,
    padding: str | None = None,
    total_stride: int | None = None,
    batch_norm_epsilon: float | None = None,
    resolution: int | None = None,
    channels: str | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> Said:
    """What someone wrote about weights; means and deviations as numbers with commas between.

    Raises:
        ValueError: it can't be so.

    >>> parse_said(channels="BGR", mean="0.5").mean
    (0.5,)
    """
    return Said(
        activation=_choice("activation", activation, Activation),
        padding=_choice("padding", padding, Padding),
        total_stride=total_stride,
        batch_norm_epsilon=batch_norm_epsilon,
        resolution=resolution,
        channels=_choice("order of channels", channels, ChannelOrder),
        mean=_numbers("mean", mean),
        std=_numbers("std", std),
    )


def _choice(what: str, text: str | None, kind: Any) -> Any:
    *most, last = get_args(kind)
    if text is None or text in (*most, last):
        return text
    raise ValueError(f"the {what} is {', '.join(most)} or {last}, not {text!r}")


def _numbers(what: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(
            f"{what} is one number or one a channel, 0.485,0.456,0.406, not {text!r}"
        ) from None


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
    try:
        with zipfile.ZipFile(path) as archive:
            return "keras" if "model.weights.h5" in archive.namelist() else "torch"
    except zipfile.BadZipFile:
        # PyTorch's older pickles are none, and its reader says what is wrong with a damaged one.
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
