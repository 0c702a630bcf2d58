"""PyTorch's weights of other projects: timm, Hugging Face, and the re-implementations people share.

A pickle is read with `weights_only=True`, so that it can run no code. Each project names its layers in its
own way; the names are a table. A file that none of them fits is taken in its own order, convolution and batch
norm in turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilenets.architecture.body import Padding
from mobilenets.architecture.preprocessing import Interpolation, Preprocessing, channel_order
from mobilenets.architecture.spec import Activation
from mobilenets.data.files import read_json
from mobilenets.weights.imported import TRACELESS, Convolution, ForeignWeights, Norm
from mobilenets.weights.state import read_safetensors

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
HALF = (0.5, 0.5, 0.5)
# What trainers wrap their weights in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a project names its layers, and what else its weights mean.

    Args:
        units: patterns of a convolution's name, stem first, and its batch norm's in terms of their groups.
            Within a block they stand in the order of computation.
        activation: None where the project's weights come with several.
        settled: whether all its networks have that activation, padding and stride; people copy and alter others.
    """

    name: str
    units: tuple[tuple[str, str], ...]
    classifier: str
    activation: Activation | None
    padding: Padding = "torch"
    batch_norm_epsilon: float = 1e-5
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 0.875
    resolution: int = 224
    total_stride: int = 32
    settled: bool = False

    def order(self, names: Sequence[str]) -> list[tuple[str, str]] | None:
        """Convolutions and their batch norms in the order of the network; None if it is another dialect."""
        found = []
        for name in names:
            for rank, (pattern, norm) in enumerate(self.units):
                match = re.fullmatch(pattern, name)
                if match:
                    numbers = tuple(map(int, match.groups()))
                    found.append(((rank > 0, numbers, rank), name, match.expand(norm)))
                    break
            else:
                return None
        return [(name, norm) for _, name, norm in sorted(found)]


DIALECTS = (
    Dialect(
        name="timm",
        units=(
            ("conv_stem", "bn1"),
            (r"blocks\.(\d+)\.(\d+)\.conv_dw", r"blocks.\1.\2.bn1"),
            (r"blocks\.(\d+)\.(\d+)\.conv_pw", r"blocks.\1.\2.bn2"),
        ),
        classifier="classifier",
        activation="relu6",
        mean=HALF,
        std=HALF,
        interpolation="bicubic",
        settled=True,
    ),
    Dialect(
        name="Hugging Face",
        units=(
            (r"mobilenet_v1\.conv_stem\.convolution", "mobilenet_v1.conv_stem.normalization"),
            (
                r"mobilenet_v1\.layer\.(\d+)\.convolution",
                r"mobilenet_v1.layer.\1.normalization",
            ),
        ),
        classifier="classifier",
        activation="relu6",
        padding="tensorflow",
        batch_norm_epsilon=1e-3,
        mean=HALF,
        std=HALF,
        settled=True,
    ),
    Dialect(
        name="kuangliu/pytorch-cifar",
        units=(
            ("conv1", "bn1"),
            (r"layers\.(\d+)\.conv1", r"layers.\1.bn1"),
            (r"layers\.(\d+)\.conv2", r"layers.\1.bn2"),
        ),
        classifier="linear",
        activation="relu",
        # For CIFAR-10: its first layer has stride 1.
        total_stride=16,
        resolution=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        crop_fraction=1.0,
    ),
    Dialect(
        name="marvis/pytorch-mobilenet",
        units=(
            (r"model\.0\.0", "model.0.1"),
            (r"model\.(\d+)\.0", r"model.\1.1"),
            (r"model\.(\d+)\.3", r"model.\1.4"),
        ),
        classifier="fc",
        activation="relu",
    ),
    Dialect(
        name="Pytorch_Retinaface",
        units=(
            (r"stage1\.0\.0", "stage1.0.1"),
            (r"stage(\d+)\.(\d+)\.0", r"stage\1.\2.1"),
            (r"stage(\d+)\.(\d+)\.3", r"stage\1.\2.4"),
        ),
        classifier="fc",
        activation="leaky",
    ),
)


def read_torch(path: Path, *, resolution: int | None = None) -> ForeignWeights:
    """Read a PyTorch state dict, from a pickle or a `.safetensors` file.

    Beside the file, timm's and Hugging Face's `config.json` and `preprocessor_config.json` are read where they are.

    Args:
        resolution: input side; None takes what the project or the files beside it say.

    Raises:
        ValueError: the file is damaged, holds code, or is no MobileNet's.
    """
    state = _state(path)
    names = _convolutions(state)
    if not names:
        raise ValueError(f"{path}: it has no convolutions")
    for dialect in DIALECTS:
        # A classifier may be a convolution, too.
        body = [name for name in names if name != dialect.classifier]
        order = dialect.order(body)
        if order is not None:
            break
    else:
        dialect, order = _in_its_own_order(state)
        if not order:
            raise ValueError(f"{path}: not a MobileNet V1, it has no batch norms")
    convolutions = [
        Convolution(
            name=name,
            weight=state[f"{name}.weight"],
            norm=_norm(state, norm, path),
            bias=state.get(f"{name}.bias"),
        )
        for name, norm in order
    ]
    classifier = None
    if f"{dialect.classifier}.weight" in state:
        weight = state[f"{dialect.classifier}.weight"].flatten(1)
        bias = state.get(f"{dialect.classifier}.bias", torch.zeros(len(weight)))
        classifier = weight, bias
    channels = convolutions[0].weight.shape[1]
    foreign = ForeignWeights(
        origin=str(path),
        convolutions=convolutions,
        classifier=classifier,
        activation=dialect.activation,
        padding=dialect.padding,
        batch_norm_epsilon=dialect.batch_norm_epsilon,
        resolution=resolution or dialect.resolution,
        total_stride=dialect.total_stride,
        sure=frozenset(TRACELESS if dialect.settled else ()),
        preprocessing=_preprocessing(dialect, resolution or dialect.resolution, channels),
    )
    settings = {"Hugging Face": _with_hugging_face_config, "timm": _with_timm_config}
    if dialect.name not in settings:
        return foreign
    try:
        return settings[dialect.name](foreign, path.parent, resolution)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        # What names its file is said already.
        if not reason.startswith(str(path.parent)):
            reason = (
                f"{path.parent}: the settings beside the weights are not as {dialect.name} writes "
                f"them ({reason})"
            )
        raise ValueError(reason) from None


def _convolutions(state: Mapping[str, Tensor]) -> list[str]:
    return [
        name.removesuffix(".weight")
        for name, value in state.items()
        if value.ndim == 4 and name.endswith(".weight")
    ]


def _state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    try:
        # Tensors and plain values only: the file can't run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile pickle fails in many ways.
    except Exception as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it holds {what[1]}, and of Python's objects only plain weights are read, since others can run code"
            if what
            else "damaged, cut short, or not a file that PyTorch wrote"
        )
        raise ValueError(f"{path}: {reason}") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: it holds a {type(content).__name__}, not weights by name")
    state = {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not state:
        raise ValueError(f"{path}: it holds no weights by name")
    return state


def _in_its_own_order(state: Mapping[str, Tensor]) -> tuple[Dialect, list[tuple[str, str]]]:
    """Convolutions as they stand in the file, each with the batch norm behind it."""
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    names = _convolutions(state)
    classifier = next(
        (
            name.removesuffix(".weight")
            for name, value in state.items()
            if value.ndim == 2 and name.endswith(".weight")
        ),
        "",
    )
    if not classifier and len(names) == len(norms) + 1:
        classifier = names.pop()
    order = list(zip(names, norms, strict=False))
    return Dialect(name="its own", units=(), classifier=classifier, activation=None), order


def _norm(state: Mapping[str, Tensor], name: str, path: Path) -> Norm:
    parts = {
        "scale": f"{name}.weight",
        "shift": f"{name}.bias",
        "mean": f"{name}.running_mean",
        "variance": f"{name}.running_var",
    }
    missing = [key for key in parts.values() if key not in state]
    if missing:
        raise ValueError(f"{path}: a batch norm is not whole: {', '.join(missing)} is missing")
    return Norm(**{part: state[key] for part, key in parts.items()})


def _preprocessing(dialect: Dialect, resolution: int, channels: int) -> Preprocessing:
    mean, std = (dialect.mean, dialect.std) if channels == 3 else ((0.5,) * channels,) * 2
    return Preprocessing(
        resolution,
        resolution,
        channels=channel_order(channels),
        interpolation=dialect.interpolation,
        crop_fraction=dialect.crop_fraction,
        mean=mean,
        std=std,
    )


def _with_timm_config(
    foreign: ForeignWeights, folder: Path, resolution: int | None
) -> ForeignWeights:
    """What timm's `config.json` beside the weights says of the images, instead of the dialect's defaults."""
    config = _json(folder / "config.json")
    served = config.get("pretrained_cfg", {})
    before = foreign.preprocessing
    _, height, width = served.get("input_size", (3, before.height, before.width))
    if resolution is not None:
        height = width = resolution
    return replace(
        foreign,
        resolution=(height, width),
        labels=tuple(map(str, config.get("label_names", ()))),
        preprocessing=replace(
            before,
            height=height,
            width=width,
            crop_fraction=served.get("crop_pct", before.crop_fraction),
            interpolation=served.get("interpolation", before.interpolation),
            mean=tuple(served.get("mean", before.mean)),
            std=tuple(served.get("std", before.std)),
        ),
    )


def _with_hugging_face_config(
    foreign: ForeignWeights, folder: Path, resolution: int | None
) -> ForeignWeights:
    """What the two JSON files beside the weights say, instead of the dialect's defaults.

    The dropout of 0.999 and batch norm's momentum of 0.9997 in Hugging Face's code are TensorFlow's shares
    the wrong way round (transformers#22767); neither is taken over.
    """
    config = _json(folder / "config.json")
    activation = config.get("hidden_act", foreign.activation)
    if activation not in ("relu", "relu6"):
        raise ValueError(f"{folder / 'config.json'}: hidden_act {activation!r} is not supported")
    labels = config.get("id2label", {})
    served = _json(folder / "preprocessor_config.json")
    side = config.get("image_size", foreign.preprocessing.height)
    height, width = _sides(served.get("crop_size"), side)
    edge, _ = _sides(served.get("size"), 0)
    fraction = min(1.0, min(height, width) / edge) if edge else foreign.preprocessing.crop_fraction
    if resolution is not None:
        height = width = resolution
    return replace(
        foreign,
        activation=activation,
        padding="tensorflow" if config.get("tf_padding", True) else "torch",
        batch_norm_epsilon=float(config.get("layer_norm_eps", foreign.batch_norm_epsilon)),
        resolution=(height, width),
        labels=tuple(labels[key] for key in sorted(labels, key=int)),
        preprocessing=replace(
            foreign.preprocessing,
            height=height,
            width=width,
            crop_fraction=fraction,
            mean=tuple(served.get("image_mean", foreign.preprocessing.mean)),
            std=tuple(served.get("image_std", foreign.preprocessing.std)),
        ),
    )


def _sides(size: Any, default: int) -> tuple[int, int]:
    """Height and width, of a number or of a mapping; the shorter edge stands for both."""
    if not isinstance(size, Mapping):
        size = {"shortest_edge": size or default}
    edge = size.get("shortest_edge", default)
    return int(size.get("height", edge)), int(size.get("width", edge))


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
