"""Networks to learn from: a run, published weights, a file of any runtime, a model of timm or torchvision.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.data.files import read_json, sha256
from mobilenets.runtimes.model import RUNTIMES, Model, runtime_of
from mobilenets.runtimes.quiet import in_short
from mobilenets.training.recipe import DistillationChoice
from mobilenets.training.run import Run
from mobilenets.training.task import Task
from mobilenets.weights.load import load_weights

TIMM, TORCHVISION = "timm/", "torchvision/"


class Teacher(Protocol):
    """Something that answers for images.

    `name` is as the user wrote it, `labels` are empty where they aren't known, and `fingerprint` differs between teachers that
    may answer differently.
    """

    name: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    fingerprint: str

    def answer(self, inputs_NCHW: Tensor) -> Tensor:
        """Its outputs for inputs as its preprocessing makes them."""

    def to(self, device: torch.device) -> None:
        """Answer on a device from now on, where it can."""


class NetworkTeacher:
    """A PyTorch network."""

    def __init__(
        self, name: str, network: nn.Module, preprocessing: Preprocessing, labels: tuple[str, ...]
    ) -> None:
        self.name, self.preprocessing, self.labels = name, preprocessing, labels
        self._network = network.eval().to(memory_format=torch.channels_last)
        digest = hashlib.sha256()
        for value in network.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def answer(self, inputs_NCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            outputs: Tensor = self._network(inputs_NCHW)
        # A tensor of inference mode takes no part in training.
        return outputs.clone()

    def to(self, device: torch.device) -> None:
        self._network = self._network.to(device)


class FileTeacher:
    """A file in its own runtime, on the CPU."""

    def __init__(
        self,
        name: str,
        path: Path,
        model: Model,
        preprocessing: Preprocessing,
        labels: tuple[str, ...],
    ) -> None:
        self.name, self.preprocessing, self.labels = name, preprocessing, labels
        self._model = model
        self.fingerprint = sha256(path)

    def answer(self, inputs_NCHW: Tensor) -> Tensor:
        pixels_NCHW = inputs_NCHW.cpu().contiguous().numpy()
        try:
            outputs = self._model.run(pixels_NCHW)
        except ValueError:
            # Many files take one image at a time.
            outputs = np.concatenate([self._model.run(one[None]) for one in pixels_NCHW])
        return torch.from_numpy(outputs).to(inputs_NCHW)

    def to(self, device: torch.device) -> None:
        """It stays where it is."""


# How the input is made, and the classes where they are known.
_Told = tuple[Preprocessing, tuple[str, ...]]


def find_teacher(reference: str, task: Task, choice: DistillationChoice) -> Teacher:
    """A teacher by what names it.

    Args:
        reference: a run, or a folder or file that was exported from one; another project's file for one of the runtimes;
            `timm/NAME`, `torchvision/NAME`; or published weights such as `keras/1.0-224`.
        task: of the model that learns.
        choice: has the mean and deviation of another project's file.

    Raises:
        ValueError: there is no such teacher, or it has learnt another task; in one sentence.
        ImportError: a package that knows the format is missing; it says how to install it.
    """
    path = Path(reference)
    if (path / "manifest.json").is_file():
        path = path / str(read_json(path / "manifest.json")["file"])
    if path.is_file() and path.suffix in {runtime.suffix for runtime in RUNTIMES}:
        return _from_file(reference, path, choice)
    if choice.mean is not None or choice.std is not None:
        raise ValueError(
            f"recipe: distillation.mean and std are for files of other projects, and {reference} has its own"
        )
    # A digit begins the name of a MobileNet's own weights.
    for start, find in ((TIMM, _from_timm), (TORCHVISION, _from_torchvision)):
        model = reference.removeprefix(start)
        if model != reference and not model[:1].isdigit() and not path.exists():
            return find(reference, model)
    if (path / "config.json").is_file() and "task" in (config := read_json(path / "config.json")):
        if config["task"] != task.name:
            raise ValueError(
                f"{reference} has learnt {config['task']}, and can't teach {task.name}"
            )
        run = Run.load(path)
        return NetworkTeacher(reference, run.model, run.preprocessing, run.labels)
    weights = load_weights(reference)
    network = task.of_weights(weights.spec, weights.labels, weights.preprocessing).build_model(
        weights.spec
    )
    network.load_state_dict(dict(weights.state))
    return NetworkTeacher(reference, network, weights.preprocessing, weights.labels)


def _from_file(reference: str, path: Path, choice: DistillationChoice) -> FileTeacher:
    model = runtime_of(path).open(path)
    beside = path.with_name("preprocessing.json")
    preprocessing, labels = (
        _told_beside(beside) if beside.is_file() else _told_in(choice, reference, model.input_shape)
    )
    size = (preprocessing.channel_count, preprocessing.height, preprocessing.width)
    if size != model.input_shape:
        raise ValueError(
            f"{reference} takes images of {model.input_shape}, and {beside} says {size}"
        )
    return FileTeacher(reference, path, model, preprocessing, labels)


def _told_beside(path: Path) -> _Told:
    """What stands beside an exported file."""
    try:
        preprocessing = Preprocessing.from_dict(read_json(path))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    labels = path.with_name("labels.txt")
    names = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
    return preprocessing, tuple(names)


def _told_in(choice: DistillationChoice, reference: str, shape: tuple[int, int, int]) -> _Told:
    """What a recipe says of another project's file."""
    channels, height, width = shape
    if choice.mean is None or choice.std is None:
        raise ValueError(
            f"{reference} does not say how its input is normalised: give --set distillation.mean=[0.5,0.5,0.5] and "
            "distillation.std, in the unit of pixel / 255"
        )
    if not len(choice.mean) == len(choice.std) == channels:
        raise ValueError(
            f"{reference} takes {channels} channels: distillation.mean and std have "
            f"{len(choice.mean)} and {len(choice.std)}"
        )
    preprocessing = Preprocessing(
        height,
        width,
        channel_order(channels),
        crop_fraction=1.0,
        mean=choice.mean,
        std=choice.std,
    )
    return preprocessing, ()


def _from_timm(reference: str, name: str) -> NetworkTeacher:
    if find_spec("timm") is None:
        raise ImportError(f"{reference} needs timm: pip install 'mobilenets[timm]'")
    import timm

    try:
        network = timm.create_model(name, pretrained=True)
    # Unknown names, no network and damaged files come as exceptions of many kinds.
    except Exception as error:
        raise ValueError(f"{reference}: timm can't make it ({in_short(error)})") from None
    config: Mapping[str, Any] = timm.data.resolve_model_data_config(network)
    _, height, width = config["input_size"]
    preprocessing = Preprocessing(
        height,
        width,
        crop_fraction=config["crop_pct"],
        interpolation="bicubic" if config["interpolation"] == "bicubic" else "bilinear",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return NetworkTeacher(reference, network, preprocessing, ())


def _from_torchvision(reference: str, name: str) -> NetworkTeacher:
    from torchvision import models

    try:
        weights = models.get_model_weights(name)["DEFAULT"]
        network = models.get_model(name, weights=weights)
        how = weights.transforms()
        (side,), (whole,) = how.crop_size, how.resize_size
        preprocessing = Preprocessing(
            side,
            side,
            crop_fraction=side / whole,
            interpolation="bicubic" if how.interpolation.value == "bicubic" else "bilinear",
            mean=tuple(how.mean),
            std=tuple(how.std),
        )
    except Exception as error:
        raise ValueError(f"{reference}: torchvision can't make it ({in_short(error)})") from None
    return NetworkTeacher(reference, network, preprocessing, tuple(weights.meta["categories"]))
