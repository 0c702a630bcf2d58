"""Keras' weights: `.h5` of Keras 2 and 3, `.weights.h5` and `.keras`, with a classifier or without.

The HDF5 file is read as the data structure that it is; no Keras is involved.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.weights.imported import INSTALL, TRACELESS, Convolution, ForeignWeights, Norm

_WEIGHTS_IN_ARCHIVE, _CONFIG_IN_ARCHIVE = "model.weights.h5", "config.json"
# Keras Applications' own file names end in alpha and size: mobilenet_5_0_160_tf.h5.
_FILE_NAME = re.compile(r"mobilenet_\d_\d_(\d{3})_tf")
Arrays = list[NDArray[np.float32]]


def read_keras(path: Path, *, resolution: int | None = None) -> ForeignWeights:
    """Read a MobileNet of Keras Applications.

    Args:
        resolution: input side; None takes what the file says, else its name, else 224.

    Raises:
        ValueError: the file is truncated, or of another network.
        ImportError: the package that knows the format is missing.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError(f"reading Keras files needs the package h5py: {INSTALL}") from None
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    told = None
    try:
        source: Any = path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read(_WEIGHTS_IN_ARCHIVE))
                if _CONFIG_IN_ARCHIVE in archive.namelist():
                    told = _sides(archive.read(_CONFIG_IN_ARCHIVE))
        with h5py.File(source, "r") as file:
            layers = list(_layers(file))
            told = told or _sides(file.attrs.get("model_config", ""))
    # A damaged file, or one of something else, fails wherever the reader happens to be.
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{path}: not a whole Keras file ({reason})") from None
    convolutions, classifier = _in_turn(layers, path)
    named = _FILE_NAME.search(path.name)
    by_name = int(named[1]) if named else 224
    height, width = (resolution, resolution) if resolution else told or (by_name, by_name)
    channels = convolutions[0].weight.shape[1]
    return ForeignWeights(
        origin=str(path),
        convolutions=convolutions,
        classifier=classifier,
        activation="relu6",
        padding="keras",
        batch_norm_epsilon=1e-3,
        resolution=(height, width),
        sure=frozenset(TRACELESS),
        preprocessing=Preprocessing(
            height,
            width,
            channels=channel_order(channels),
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
        ),
    )


def _sides(config: str | bytes) -> tuple[int, int] | None:
    """Height and width of the input by Keras' description of the model; None where it has none."""
    if not config:
        return None
    try:
        first = json.loads(config)["config"]["layers"][0]["config"]
        shape = first.get("batch_shape") or first.get("batch_input_shape") or ()
    # Of a model that is not a list of layers.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    sides = [side for side in shape[1:3] if side]
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 else None


def _layers(file: Any) -> Iterator[tuple[str, Arrays]]:
    """Layers that have weights, in the order of the network, with their arrays."""
    root = file.get("model_weights", file)
    if "layer_names" in root.attrs:
        for name in root.attrs["layer_names"]:
            group = root[_text(name)]
            arrays = [np.array(group[_text(key)]) for key in group.attrs["weight_names"]]
            if arrays:
                yield _text(name), arrays
        return
    # Keras 3 numbers the layers of each kind: conv2d, conv2d_1, and so on.
    kinds: dict[str, list[tuple[str, Arrays]]] = {}
    for name in sorted(root["layers"], key=_numbered):
        variables = root["layers"][name].get("vars", {})
        arrays = [np.array(variables[key]) for key in sorted(variables, key=int)]
        if arrays:
            kinds.setdefault(re.sub(r"_\d+$", "", name), []).append((name, arrays))
    norms = iter(kinds.get("batch_normalization", []))
    depthwise = iter(kinds.get("depthwise_conv2d", []))
    for name, arrays in kinds.get("conv2d", []):
        yield name, arrays
        if len(arrays) == 1:
            yield from _next(norms)
            # Each block begins with a depthwise layer; after the last one there is none.
            for depthwise_name, filters in _next(depthwise):
                yield depthwise_name, filters
                yield from _next(norms)
    yield from kinds.get("dense", [])


def _next(layers: Iterator[tuple[str, Arrays]]) -> Iterator[tuple[str, Arrays]]:
    found = next(layers, None)
    if found is not None:
        yield found


def _numbered(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(?:_(\d+))?", name)
    assert match is not None
    return match[1], int(match[2] or 0)


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _in_turn(
    layers: Sequence[tuple[str, Arrays]], path: Path
) -> tuple[list[Convolution], tuple[torch.Tensor, torch.Tensor] | None]:
    """Convolutions with the batch norm behind each, and the classifier."""
    convolutions: list[Convolution] = []
    waiting: tuple[str, torch.Tensor] | None = None
    classifier = None
    for name, arrays in layers:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)).float() for array in arrays]
        shapes = [tensor.ndim for tensor in tensors]
        if shapes == [4] and waiting is None:
            # Keras keeps (height, width, in, out), and depthwise filters as (height, width, C, 1).
            kernel = tensors[0]
            depthwise = kernel.shape[3] == 1 and kernel.shape[0] > 1
            waiting = name, kernel.permute((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)).contiguous()
        elif shapes == [1, 1, 1, 1] and waiting is not None:
            norm = Norm(scale=tensors[0], shift=tensors[1], mean=tensors[2], variance=tensors[3])
            convolutions.append(Convolution(name=waiting[0], weight=waiting[1], norm=norm))
            waiting = None
        elif shapes in ([4, 1], [2, 1]) and waiting is None and classifier is None:
            classifier = tensors[0].reshape(-1, tensors[0].shape[-1]).T.contiguous(), tensors[1]
        else:
            raise ValueError(
                f"{path}: {name} is no layer of Keras' MobileNet (arrays of "
                f"{', '.join(str(array.shape) for array in arrays)})"
            )
    if not convolutions or waiting is not None:
        raise ValueError(f"{path}: it has no convolutions with a batch norm behind each")
    return convolutions, classifier
