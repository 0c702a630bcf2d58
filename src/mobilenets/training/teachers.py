"""What to learn from: a run, published weights, a file of any runtime, a model of timm or torchvision, stored outputs.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.data.files import read_json, sha256
from mobilenets.data.results import is_results, read_outputs
from mobilenets.runtimes.model import RUNTIMES, Model, runtime_of
from mobilenets.runtimes.quiet import in_short
from mobilenets.training.recipe import DistillationChoice
from mobilenets.training.run import Run
from mobilenets.training.task import Task
from mobilenets.weights.load import load_weights

TIMM, TORCHVISION = "timm/", "torchvision/"
OUTPUTS, IMAGES = "outputs.npy", "images.txt"


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

    def shape(self) -> tuple[int, ...]:
        """Of its outputs for one image."""

    def to(self, device: torch.device) -> None:
        """Answer on a device from now on, where it can."""


def _shape_of(teacher: Teacher) -> tuple[int, ...]:
    """By asking it about a blank image."""
    how = teacher.preprocessing
    return tuple(teacher.answer(torch.zeros(2, how.channel_count, how.height, how.width)).shape[1:])


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
        self._answers: Callable[[Tensor], Tensor] = self._network

    def of_features(self) -> NetworkTeacher:
        """The same one, asked for what comes before its classifier.

        Raises:
            ValueError: it is not known where that is.
        """
        network: Any = self._network
        other = copy.copy(self)
        if hasattr(network, "pooled_features"):
            other._answers = network.pooled_features
        elif hasattr(network, "forward_head"):
            other._answers = lambda inputs_NCHW: network.forward_head(
                network.forward_features(inputs_NCHW), pre_logits=True
            )
        else:
            raise ValueError(
                f"{self.name}: it is not known which of its layers gives features; a file whose output they are teaches them"
            )
        other.fingerprint += " features"
        return other

    def answer(self, inputs_NCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            outputs: Tensor = self._answers(inputs_NCHW)
        # A tensor of inference mode takes no part in training.
        return outputs.clone()

    def shape(self) -> tuple[int, ...]:
        return _shape_of(self)

    def to(self, device: torch.device) -> None:
        # In place: what it answers with is its own.
        self._network.to(device)


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

    def shape(self) -> tuple[int, ...]:
        return _shape_of(self)

    def to(self, device: torch.device) -> None:
        """It stays where it is."""


class StoredTeacher:
    """Outputs that were stored, by the image that they are of: a folder with `outputs.npy` and `images.txt`, or of results with outputs.

    Args:
        preprocessing: of the model that learns, since nothing is asked anew.

    Raises:
        ValueError: the folder does not hold an output for each name, in one sentence.
    """

    def __init__(self, name: str, preprocessing: Preprocessing) -> None:
        folder = Path(name)
        self.name, self.preprocessing = name, preprocessing
        read = read_outputs if is_results(folder) else _plain_outputs
        names, outputs, self.labels = read(folder)
        self._outputs = torch.from_numpy(outputs)
        self._row_of = {name: row for row, name in enumerate(names)}
        digest = hashlib.sha256(outputs.tobytes())
        digest.update("\n".join(names).encode())
        self.fingerprint = digest.hexdigest()

    def told(self, images: Sequence[str]) -> Tensor:
        """Outputs of images, which are known by their paths or the ends of those.

        Raises:
            ValueError: there is none of one of them.
        """
        rows = [self._find(image) for image in images]
        missing = [image for image, row in zip(images, rows, strict=True) if row is None]
        if missing:
            raise ValueError(
                f"{self.name} holds no output of {missing[0]}"
                + (f" and {len(missing) - 1:,} more images" if len(missing) > 1 else "")
            )
        return self._outputs[torch.tensor(rows)]

    def answer(self, inputs_NCHW: Tensor) -> Tensor:
        del inputs_NCHW
        raise ValueError(f"{self.name} holds outputs, and answers for no other images")

    def shape(self) -> tuple[int, ...]:
        return tuple(self._outputs.shape[1:])

    def to(self, device: torch.device) -> None:
        """It stays where it is."""

    def _find(self, image: str) -> int | None:
        parts = Path(image).absolute().parts
        # The first is the root, with its own stroke.
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        known = (image, str(Path(*parts)), *ends)
        return next((self._row_of[end] for end in known if end in self._row_of), None)


def _plain_outputs(folder: Path) -> tuple[list[str], NDArray[np.float32], tuple[str, ...]]:
    """The images that `images.txt` names, the rows of `outputs.npy`, and the labels where they are known.

    Raises:
        ValueError: it does not hold an output for each name.
    """
    labels = _lines(folder / "labels.txt") if (folder / "labels.txt").is_file() else ()
    names = list(_lines(folder / IMAGES))
    try:
        outputs = np.load(folder / OUTPUTS, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{folder / OUTPUTS} can't be read ({in_short(error)})") from None
    if outputs.ndim < 2 or len(outputs) != len(names):
        raise ValueError(
            f"{folder} names {len(names):,} images, and {OUTPUTS} has the shape {outputs.shape}: "
            "it holds a row for each"
        )
    return names, outputs, labels


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read ({in_short(error)})") from None


# How the input is made, and the classes where they are known.
_Told = tuple[Preprocessing, tuple[str, ...]]


def find_teacher(reference: str, task: Task, choice: DistillationChoice) -> Teacher:
    """A teacher by what names it.

    Args:
        reference: a run, or a folder or file that was exported from one; another project's file for one of the runtimes; a folder
            of stored outputs; `timm/NAME`, `torchvision/NAME`; or published weights such as `keras/1.0-224`.
        task: of the model that learns.
        choice: has the mean and deviation of another project's file.

    Raises:
        ValueError: there is no such teacher, or it has learnt another task; in one sentence.
        ImportError: a package that knows the format is missing; it says how to install it.
    """
    teacher = _find(reference, task, choice)
    if choice.loss == "features" and isinstance(teacher, NetworkTeacher):
        return teacher.of_features()
    return teacher


def _find(reference: str, task: Task, choice: DistillationChoice) -> Teacher:
    path = Path(reference)
    if (path / "manifest.json").is_file():
        path = path / str(read_json(path / "manifest.json")["file"])
    if (path / OUTPUTS).is_file() or is_results(path):
        return StoredTeacher(reference, task.preprocessing)
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
        if config["task"] != task.name and choice.loss != "features":
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
