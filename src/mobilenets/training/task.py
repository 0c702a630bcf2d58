"""What the engine knows of a task: all that training, evaluation, prediction and export call."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mobilenets.architecture.detector import Selection, Spec
from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.data.doctor import Report
from mobilenets.data.loaders import Batch, Loader, OnBadImage, evenly
from mobilenets.data.parts import Part
from mobilenets.data.splits import ALL, P
from mobilenets.training.agreement import Agreement
from mobilenets.training.recipe import DistillationChoice, Recipe

LOWER_IS_BETTER = frozenset({"loss", "calibration_error", "equal_error_rate", "median_km"})

# Of a model, what is trained with it and not kept.
EXTENSION = "projector"

# What outputs are: a network's own; every box of a detector with its score of each class; the boxes that it found.
Form = Literal["network", "boxes", "found"]


class Prediction(ABC):
    """What a model says about one image."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """The same as flat rows for CSV, best first."""

    @abstractmethod
    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with the prediction on it."""


class Metrics(Protocol):
    """Figures gathered over an evaluation, exact whatever the batches."""

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch."""

    def compute(self) -> dict[str, float]:
        """The figures by name, over all processes; shares, not percent."""

    def details(self) -> dict[str, Any]:
        """What is more than one number, such as a confusion matrix; after `compute`."""


@dataclass(frozen=True)
class TrainingData:
    """The two loaders of a training run, and what to tell about them.

    `record` goes into the run's `config.json`, so that the data can be found and known again. `loss` is minimised where it is
    not the task's own, by a model that `extend` gives what only training asks for, in modules named `EXTENSION`.
    """

    train: Loader
    val: Loader
    record: Mapping[str, Any]
    warnings: Sequence[str] = field(default=())
    loss: Callable[[nn.Module, Batch, Recipe], dict[str, Tensor]] | None = None
    extend: Callable[[nn.Module], None] | None = None


def make_loaders(
    make: Callable[..., tuple[Loader, tuple[str, ...]]],
    parts: tuple[Any, Any],
    preprocessing: Preprocessing,
    distortion: Any,
    recipe: Recipe,
    where: str,
    *,
    evaluation_batch: int,
    on_bad_image: OnBadImage,
    **more: Any,
) -> tuple[Loader, Loader, tuple[str, ...], tuple[str, ...]]:
    """Loaders of what is trained and validated on, and what was left out of each.

    Args:
        make: `make_loader` or `make_box_loader`.
        where: the data, for messages.
        more: for training alone, as `make` takes it.

    Raises:
        ValueError: as of `make`, or there is one image alone.
    """
    train, val = parts
    taught, bad_train = make(
        train,
        preprocessing,
        recipe.batch_size,
        distortion,
        recipe.seed,
        drop_last=recipe.drop_last,
        what="training images",
        on_bad_image=on_bad_image,
        **more,
    )
    held, bad_val = make(
        val,
        preprocessing,
        evaluation_batch,
        what="validation images",
        on_bad_image=on_bad_image,
    )
    if not len(taught):
        raise ValueError(f"{where}: one image is too few to train on")
    return taught, held, bad_train, bad_val


def told_data(
    source: Any,
    loaders: tuple[Loader, Loader, tuple[str, ...], tuple[str, ...]],
    division: Mapping[str, Any],
    *,
    on_bad_image: OnBadImage,
) -> TrainingData:
    """What a training run takes, of a source with a fingerprint.

    Args:
        source: has `where` and `fingerprint()`.
        loaders: as `make_loaders` gives them.
        division: how validation images were held out, where the data has none of its own.
    """
    train, val, bad_train, bad_val = loaders
    skipped = [*bad_train, *bad_val]
    record = {
        "where": str(Path(source.where).resolve()),
        "fingerprint": source.fingerprint(),
        **division,
        "train_images": train.images,
        "skipped": skipped,
        "on_bad_image": on_bad_image,
    }
    return TrainingData(train, val, record, [f"left out: {problem}" for problem in skipped])


def classifier_spec(spec: Spec, purpose: str, example: str) -> MobileNetSpec:
    """The specification, once it is known not to be a detector's.

    Args:
        purpose, example: of the model that is wanted, for the message.

    Raises:
        ValueError: it is.
    """
    if not isinstance(spec, MobileNetSpec):
        raise ValueError(f"{spec} detects: a model {purpose} is named as {example} is")
    return spec


def plain_preprocessing(spec: Spec) -> Preprocessing:
    """How an image becomes the input of a network without weights: values from -1 to 1, the margin cut off."""
    half = (0.5,) * spec.input_channels
    return Preprocessing(
        spec.height, spec.across, channel_order(spec.input_channels), mean=half, std=half
    )


# Augmentation of images with boxes alone, and of images with one class.
OF_BOXES, OF_CLASSES = ("expand", "crop", "mosaic"), ("mixup", "cutmix")


def refuse_choices(recipe: Recipe, what: str, *, augmentation: Sequence[str]) -> None:
    """Make sure that a recipe asks for nothing that is for classes or boxes alone.

    Args:
        what: a task's answers, for messages.

    Raises:
        ValueError: it does.
    """
    plain = type(recipe.augmentation)()
    for name in augmentation:
        if getattr(recipe.augmentation, name) != getattr(plain, name):
            raise ValueError(f"recipe: augmentation.{name} is not for {what}: leave it out")
    if recipe.fine_tuning is not None and recipe.fine_tuning.probe:
        raise ValueError(f"recipe: fine_tuning.probe fits classes, not {what}: set it to false")
    for name in ("label_smoothing", "class_weights", "outputs", "folds"):
        if getattr(recipe, name) != type(recipe).model_fields[name].default:
            raise ValueError(f"recipe: {name} is for classes, not for {what}: leave it out")


def choose_part(
    where: str,
    parts: Mapping[str, P],
    split: str | None,
    held: tuple[P, P] | None,
    *,
    own: bool,
    limit: int | None,
) -> tuple[str, P, list[str]]:
    """The part of a data set that is evaluated, with its name, and what to say of it.

    Args:
        held: what the run was trained on and what it held out of its only images, if it did.
        own: whether it was trained on this data set.

    Raises:
        ValueError: there is no such split.
    """
    name = split or next(name for name in ("test", "val", ALL, "train") if name in parts)
    if held is not None:
        parts = {**parts, "train": held[0], "val": held[1]}
        name = "val" if split is None and name in (ALL, "train") else name
    if name not in parts:
        raise ValueError(f"{where} has no split {name!r}: it has {', '.join(parts)}")
    part, warnings = parts[name], []
    if own and name in ("train", ALL):
        warnings.append("these are images the model was trained on: the figures flatter it")
    if limit is not None and len(part) > limit:
        part = part.take(evenly(len(part), limit))
    return name, part, warnings


class Task(ABC):
    """A head, a loss, data and a metric for the one backbone.

    `default_model` is trained where none is named, `hub_task` what model hubs call the task. `mirrors` says whether outputs
    for an image and its mirror image can be averaged. The weights of layers whose names begin with
    `class_layers` are of use for the same classes alone. `figures` names what its metrics compute, and `monitor` the one
    that decides which epoch is best (more is better); people call it `figure_title`, what the task answers `answers`, and files
    call their output `output`.
    """

    name: ClassVar[str]
    hub_task: ClassVar[str]
    mirrors: ClassVar[bool]
    default_model: ClassVar[str]
    class_layers: ClassVar[tuple[str, ...]]
    answers: ClassVar[str]
    output: ClassVar[str] = "logits"
    # What a network's outputs are, for who runs a file; and whether they are of labels of which one alone is right.
    output_told: ClassVar[str] = "one value a class before softmax"
    exclusive: ClassVar[bool] = False
    # What one task can tell may depend on its data.
    monitor: str
    figure_title: str
    figures: tuple[str, ...]

    _labels: tuple[str, ...]
    _preprocessing: Preprocessing

    @classmethod
    @abstractmethod
    def recipes(cls) -> Mapping[str, Recipe]:
        """The task's recipes by name."""

    @classmethod
    @abstractmethod
    def default_recipe(cls, spec: Spec, where: str, *, pretrained: bool = False) -> Recipe:
        """The recipe for a model and data when none is named."""

    @classmethod
    @abstractmethod
    def from_data(
        cls,
        where: str,
        spec: Spec,
        recipe: Recipe | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Self:
        """The task that a data set sets, with what the recipe says of outputs and class weights.

        The preprocessing follows from the specification, unless weights bring their own.

        Raises:
            ValueError: the data can't serve, in one sentence.
        """

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any], preprocessing: Preprocessing) -> Self:
        """Rebuild from `to_dict` and the preprocessing, which a run keeps beside it."""

    @classmethod
    @abstractmethod
    def check_data(
        cls,
        where: str,
        *,
        network: nn.Module | None = None,
        preprocessing: Preprocessing | None = None,
        noisy: bool = False,
    ) -> Report:
        """What is wrong with a data set: its files, its labels, its balance.

        A trained `network` with its `preprocessing` may help to judge the labels, of which many may
        be wrong in `noisy` data.

        Raises:
            ValueError: there is nothing to look at, in one sentence.
        """

    @classmethod
    @abstractmethod
    def of_weights(cls, spec: Spec, labels: Sequence[str], preprocessing: Preprocessing) -> Self:
        """The task of weights that were trained elsewhere."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What a run keeps of the task, such as its labels."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the input."""
        return self._preprocessing

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index."""
        return self._labels

    @property
    def outputs(self) -> int:
        """How many values the classifier gives, where the network has one, for the cost."""
        return len(self._labels)

    @property
    def kinds(self) -> str:
        """Of what the images are, for messages."""
        return f"{len(self._labels):,} classes"

    def sized(self, height: int, width: int) -> Self:
        """The same task on images of another size."""
        other = copy.copy(self)
        other._preprocessing = replace(self._preprocessing, height=height, width=width)
        return other

    @abstractmethod
    def build_model(self, spec: Spec, recipe: Recipe | None = None) -> nn.Module:
        """The network with this task's head; the recipe gives its dropout."""

    def fit_head(
        self, model: nn.Module, data: TrainingData, recipe: Recipe, device: torch.device
    ) -> dict[str, float]:
        """Fit the head to what the body gives for training images, before any step; and how it went.

        Raises:
            ValueError: the task has no head that can be fitted alone.
        """
        del model, data, recipe, device
        raise ValueError(f"recipe: fine_tuning.probe fits a classifier, and {self.name} has none")

    @abstractmethod
    def build_data(
        self, recipe: Recipe, *, on_bad_image: OnBadImage, unlabelled: Sequence[Path] = ()
    ) -> TrainingData:
        """Loaders over the data the task was made from; a `test` split is never read.

        Args:
            unlabelled: more images to train on, of which a teacher alone knows what they are.
        """

    @abstractmethod
    def open_for_evaluation(
        self,
        where: str,
        split: str | None,
        record: Mapping[str, Any],
        *,
        on_bad_image: OnBadImage,
        limit: int | None = None,
    ) -> tuple[str, Loader, tuple[str, ...]]:
        """The name of the split that is evaluated, a loader over it, and warnings.

        Without a name: `test`, else `val`, else what the run held out of this very data, else all.
        `limit` takes that many images, evenly spaced.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        """Means over one batch: `loss` is minimised, the others are shown as `train/NAME`.

        The batch may be empty in one of several processes.
        """

    def imitate(self, outputs: Tensor, taught: Tensor, choice: DistillationChoice) -> Tensor:
        """How far outputs are from a teacher's, as a mean over the images.

        Raises:
            ValueError: these are no outputs to imitate.
        """
        del outputs, taught, choice
        raise ValueError(f"{self.name} learns from no teacher")

    @abstractmethod
    def metrics(self) -> Metrics:
        """Fresh metrics, `monitor` and `loss` among them."""

    def settle(self, details: Mapping[str, Any]) -> None:
        """Take what predictions need from the details of the best validation, such as thresholds."""
        del details

    @abstractmethod
    def compare(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> Agreement:
        """How far a file's outputs are from those of the run."""

    @property
    def asks_teacher(self) -> bool:
        """Whether only a teacher knows what validation images are."""
        return False

    @property
    def steady(self) -> bool:
        """Whether each batch takes the same memory, so that what one has freed serves the next."""
        return True

    @property
    def selection(self) -> Selection | None:
        """Which boxes a file tells, where there are boxes to select from."""
        return None

    def beside(self) -> dict[str, Any]:
        """What who runs a file needs besides it, as JSON by the names of files."""
        return {}

    def in_file(self, model: nn.Module, form: Form) -> nn.Module:
        """What a file computes: the network, and what follows on it.

        Raises:
            ValueError: no file can hold this network.
        """
        del form
        return model

    def reading(self, form: Form, score: float | None = None) -> Task:
        """The same task on outputs of another form.

        Args:
            score: the least that a box is told with.
        """
        del form, score
        return self

    def join(self, predictions: Sequence[Prediction], parts: Sequence[Part]) -> Prediction:
        """What is in an image, from what is in it as a whole and in parts of it."""
        del parts
        return predictions[0]

    @abstractmethod
    def decode(self, outputs: NDArray[np.float32]) -> list[Prediction]:
        """Predictions from a network's or a runtime's outputs, one an image."""
