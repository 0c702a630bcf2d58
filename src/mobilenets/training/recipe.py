"""How a model is trained: a frozen, validated set of choices that a run keeps with it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)


class _Choices(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("yes and no are no values here; null switches off what can be off")
        return value


class OptimizerChoice(_Choices):
    """Optimiser and its numbers.

    Weight decay reaches no batch norm, no bias and, unless asked, no depthwise filter. It is part of
    the gradient for `sgd`, `adam` and `rmsprop`, and apart from it for `adamw`. `rmsprop` is
    TensorFlow's, see `training.optimizers.RMSpropTF`.
    """

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    lr: float = Field(default=0.05, gt=0, description="peak learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="beta1 of adam and adamw")
    nesterov: bool = Field(default=True, description="sgd only")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="adam, adamw; decay of rmsprop")
    epsilon: float = Field(default=1e-8, gt=0, description="adam, adamw, rmsprop")
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_depthwise: bool = Field(default=False, description="weight decay on depthwise filters")
    head_lr: float = Field(default=1.0, gt=0, description="times lr, for all that is not the body")
    norm_bias_lr: float = Field(default=1.0, gt=0, description="times lr, for batch norm's shift")


class ScheduleChoice(_Choices):
    """Learning rate over the steps: a linear warm-up, then down.

    `linear` and `cosine` go down to `final` times the peak; `exponential` multiplies by `factor`
    every `every` epochs, in stairs, and has no warm-up when the end is set in time (`max_seconds`).
    """

    name: Literal["constant", "linear", "cosine", "exponential"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of all steps")
    final: float = Field(default=0.0, ge=0, le=1)
    factor: float = Field(default=0.94, gt=0, le=1)
    every: float = Field(default=2.5, gt=0, description="epochs")


class AugmentationChoice(_Choices):
    """Random changes to training images; shares are of the side or the area."""

    mirror: bool = True
    alternate: bool = Field(default=False, description="mirror each image every second epoch")
    shift: float = Field(default=0.0, ge=0, lt=1, description="share of the side; small images")
    min_area: float = Field(default=1.0, gt=0, le=1, description="smallest random crop; photos")
    cutout: float = Field(default=0.0, ge=0, lt=1, description="side of a grey square")
    colour: float = Field(default=0.0, ge=0, le=1, description="change of brightness, saturation")
    randaugment: int | None = Field(default=None, ge=0, le=30, description="magnitude")
    randaugment_share: float = Field(default=0.5, ge=0, le=1, description="of images changed")
    mixup: float = Field(default=0.0, ge=0, description="alpha; 0 is off")
    cutmix: float = Field(default=0.0, ge=0, description="alpha; 0 is off")
    expand: float = Field(default=1.0, ge=1, description="largest grey canvas; images with boxes")
    crop: bool = Field(default=False, description="parts with objects in them; images with boxes")
    mosaic: float = Field(
        default=0.0, ge=0, le=1, description="share of images made of four, boxes"
    )


class GrowthChoice(_Choices):
    """Images that grow while training: from `start` of their side to the whole of it.

    Over the first `until` of the schedule the side is the nearest eighth of the whole; with the
    defaults, 32 pixels are 24 for the first 15 % of the schedule, 28 until 45 %, and whole from
    there. Small images cost less, so that more of them are seen in the same time (arXiv 2104.00298
    calls it progressive learning).

    >>> growth = GrowthChoice(start=0.75, until=0.5)
    >>> [growth.side(32, done) for done in (0.0, 0.2, 0.4, 0.5)]
    [24, 28, 32, 32]
    """

    start: float = Field(default=0.75, gt=0, lt=1, description="share of the side")
    until: float = Field(default=0.6, gt=0, le=1, description="share of the schedule")

    def side(self, whole: int, done: float) -> int:
        """Pixels a side of images that are `whole` at the end, when `done` of the schedule is."""
        share = self.start + (1 - self.start) * min(1.0, done / self.until)
        return max(1, round(whole * max(1, round(8 * share)) / 8))


class FineTuningChoice(_Choices):
    """How a body that comes with weights is trained on; a body that starts at random is not concerned.

    With `thaw`, its blocks join from the last to the first over that share of the schedule, so that
    what is nearest to the new classes learns first; 0 trains all from the start, and null none ever.
    Each block learns at `rate_decay` times the rate of the one behind it. Batch norm keeps
    the statistics of the weights (`kept`), which few images can't better, or takes each batch's own (`batch`).
    """

    probe: bool = Field(default=True, description="fit the classifier first, the body as it is")
    thaw: float | None = Field(default=0.0, ge=0, le=1, description="share of the schedule")
    rate_decay: float = Field(default=1.0, gt=0, le=1)
    norm: Literal["kept", "batch"] = "kept"


class DistillationChoice(_Choices):
    """How a model learns from a teacher (`--teacher`), beside the labels or instead of them.

    `soft` compares probabilities at a temperature (Hinton et al., arXiv 1503.02531), `squared` takes the squared difference
    of the outputs, and `features` that of what comes before the classifier, the model's put through a linear projector that is
    learnt and not kept (Romero et al., arXiv 1412.6550); None leaves it to the task, as it does the temperature (4 of classes, 1 of boxes). A teacher that looks at `same` images sees the crop and
    the colours that the model sees, at its own size; one that looks at `whole` images sees each
    once and undistorted, is asked no more, and its answers are kept for the next training.
    """

    weight: float = Field(default=0.9, gt=0, le=1, description="of the teacher; 1 needs no labels")
    loss: Literal["soft", "squared", "features"] | None = None
    temperature: float | None = Field(default=None, gt=0, description="of soft")
    sees: Literal["same", "whole"] = "same"
    mean: tuple[float, ...] | None = Field(
        default=None, description="of the teacher's input, where its file can't tell"
    )
    std: tuple[float, ...] | None = Field(default=None, description="beside mean")


class EmbeddingChoice(_Choices):
    """What pulls images of one identity together, and others apart.

    `triplet` asks that an image be nearer to one of the same identity than to one of another, by `margin`, in squared distance; of
    the others in the batch it takes those that are further away, but not by that much (Schroff et al., arXiv 1503.03832).
    `arcface` learns a direction for each identity of training, and asks for an angle of `margin` degrees beside it, at a `scale`
    (Deng et al., arXiv 1801.07698).
    """

    size: int = Field(default=128, ge=2, description="values of an embedding")
    loss: Literal["triplet", "arcface"] = "triplet"
    margin: float | None = Field(
        default=None, gt=0, description="0.2 in squared distance, 28.6 degrees"
    )
    scale: float = Field(default=64.0, gt=0, description="of arcface")
    group: int = Field(default=4, ge=2, description="images of an identity in a batch")


class GeolocationChoice(_Choices):
    """How the Earth is cut into cells, and what a guess at a neighbour is worth.

    A cell that holds more than `max_images` photos of training is cut into four, and one that holds less than `min_images` is dropped,
    with its photos (Weyand et al. 2016); several numbers make as many levels, all of which are learnt at once
    (Müller-Budack et al. 2018). None takes numbers that fit the photos.
    """

    max_images: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, min_length=1, description="a level of cells each"
    )
    min_images: int | None = Field(default=None, ge=1)
    max_level: int = Field(default=30, ge=0, le=30, description="of S2, of the smallest cells")
    smoothing: float = Field(
        default=0.0, ge=0, description="km in which a neighbour's share of the label falls to 1/e"
    )


class EarlyStopping(_Choices):
    """End when a validation figure has not improved for `patience` epochs."""

    metric: str = "loss"
    patience: int = Field(default=10, ge=1)


class Recipe(_Choices):
    """Everything that decides a training run besides the model and the data.

    >>> Recipe(name="short", epochs=3).override({"optimizer.lr": "0.1"}).optimizer.lr
    0.1
    """

    name: str
    epochs: int = Field(ge=0, description="0 with a probe: the classifier fitted, and no more")
    max_seconds: float | None = Field(
        default=None, gt=0, description="plan the schedule to end by then, instead of by epochs"
    )
    batch_size: int = Field(default=64, ge=2, description="images a step, over all processes")
    accumulate: int = Field(default=1, ge=1, description="pieces a batch is worked through in")
    drop_last: bool = Field(default=False, description="leave an incomplete last batch out")
    shuffle_shards: int = Field(
        default=8, ge=1, description="shards whose images are shuffled together"
    )
    optimizer: OptimizerChoice = OptimizerChoice()
    schedule: ScheduleChoice = ScheduleChoice()
    augmentation: AugmentationChoice = AugmentationChoice()
    growth: GrowthChoice | None = None
    fine_tuning: FineTuningChoice | None = None
    distillation: DistillationChoice | None = None
    embedding: EmbeddingChoice | None = None
    geolocation: GeolocationChoice | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: bool = Field(default=False, description="weigh rare classes up")
    outputs: int | None = Field(default=None, ge=1, description="logits; as many as classes")
    dropout: float = Field(default=0.001, ge=0, lt=1)
    batch_norm_momentum: float = Field(default=0.1, gt=0, le=1)
    scores: Literal["sigmoid", "softmax"] = Field(default="sigmoid", description="of detectors")
    dirac: bool = Field(default=False, description="blocks start as the identity")
    whiten: bool = Field(default=False, description="first layer whitens patches and is frozen")
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    clip_norm: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    sync_batch_norm: bool = Field(default=True, description="over all processes")
    reduce_in: Literal["fp32", "bf16"] = Field(
        default="fp32", description="gradients on their way between processes"
    )
    compile: bool = False
    deterministic: bool = False
    early_stopping: EarlyStopping | None = None
    fraction: float = Field(default=1.0, gt=0, le=1, description="of the training images used")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share without a val split")
    folds: int | None = Field(default=None, ge=2, description="stratified parts of train and val")
    fold: int = Field(default=1, ge=1, description="which of them is held out")
    seed: int = Field(default=0, ge=0)
    expected: str = Field(default="", description="the result it reached, and on what")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate}: at most batch_size, {self.batch_size}"
            )
        if self.folds is not None and self.fold > self.folds:
            raise ValueError(f"fold is {self.fold}: there are {self.folds} folds")
        probes = self.fine_tuning is not None and self.fine_tuning.probe
        if not (self.epochs or probes):
            raise ValueError("epochs is 0: at least 1, unless a classifier is fitted beforehand")
        return self

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with some values changed, `optimizer.lr` and the like as keys.

        Raises:
            ValueError: names the key, the value, and the nearest valid one.
        """
        values = self.model_dump()
        for key, value in changes.items():
            parsed = _parsed(value, key)
            inner = values
            choices: type[BaseModel] = type(self)
            *path, last = key.split(".")
            for step in path:
                _check_key(step, choices, key)
                inner_choices = _choices_below(choices, step)
                if inner_choices is None:
                    raise ValueError(f"recipe: {key} does not exist, {step} holds a single value")
                if inner[step] is None:
                    inner[step] = {}
                if not isinstance(inner[step], dict):
                    raise ValueError(
                        f"recipe: {step} is {inner[step]!r}: it holds several values, such as {key}"
                    )
                inner, choices = inner[step], inner_choices
            _check_key(last, choices, key)
            inner[last] = parsed
        return _validated(values)

    def to_yaml(self) -> str:
        """The recipe as YAML, which `read_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        ValueError: the file is missing or not a valid recipe.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a recipe ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a list of `key: value` lines")
    return _validated({"name": path.stem, **values})


def find_recipe(wanted: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """A recipe by its name or from a YAML file.

    Raises:
        ValueError: neither; names the nearest.
    """
    if wanted in recipes:
        return recipes[wanted]
    if Path(wanted).suffix in (".yaml", ".yml") or Path(wanted).is_file():
        return read_recipe(Path(wanted))
    raise ValueError(
        f"unknown recipe {wanted!r}: the recipes are {', '.join(recipes)}, or a YAML file; "
        f"nearest: {_nearest(wanted, recipes)}"
    )


def parse_seconds(text: str) -> float:
    """Seconds from `90s`, `20m`, `1h30m` or plain seconds.

    Raises:
        ValueError: it is no such time, or none at all.

    >>> parse_seconds("20m"), parse_seconds("1h30m"), parse_seconds("90")
    (1200.0, 5400.0, 90.0)
    """
    number = r"(\d+(?:\.\d+)?)"
    # 1h30 is a time on a clock.
    plain = re.sub(rf"h{number}$", r"h\1m", text.strip().lower())
    units = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", plain)
    seconds = 0.0
    if units is not None:
        for value, unit in zip(units.groups(), (3600, 60, 1), strict=True):
            seconds += float(value or 0) * unit
    if not seconds:
        raise ValueError(f"{text!r} is not a time: write 90s, 20m or 1h30m")
    return seconds


def _parsed(value: Any, key: str) -> Any:
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ValueError(f"recipe: {key} is {value!r}, which can't be read as a value") from None


def _choices_below(choices: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The set of choices that stands under a key, if it is not a single value."""
    annotation = choices.model_fields[name].annotation
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _check_key(name: str, choices: type[BaseModel], key: str) -> None:
    if name in choices.model_fields:
        return
    known = _whole_keys(Recipe)
    if choices is not Recipe:
        # The first part is right: look no further.
        first = key.split(".")[0]
        known = [whole for whole in known if whole.startswith(f"{first}.")]
    below = [whole for whole in known if whole.rpartition(".")[2] == key]
    nearest = below[0] if below else _nearest(key, known)
    raise ValueError(f"recipe: there is no key {key!r}; nearest: {nearest}")


def _whole_keys(choices: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in choices.model_fields:
        keys.append(prefix + name)
        below = _choices_below(choices, name)
        if below is not None:
            keys += _whole_keys(below, f"{prefix}{name}.")
    return keys


def _nearest(wanted: str, known: Mapping[str, Any] | list[str]) -> str:
    return difflib.get_close_matches(wanted, list(known), n=1, cutoff=0)[0]


def _validated(values: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        choices: type[BaseModel] = Recipe
        for step in first["loc"][:-1]:
            choices = _choices_below(choices, str(step)) or choices
        _check_key(str(first["loc"][-1]), choices, key)
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        reason += f"; nearest: {_nearest(str(first['input']), _literals(first['ctx']['expected']))}"
    if first["type"] == "missing":
        raise ValueError(f"recipe: {key} is missing")
    if not key:
        raise ValueError(f"recipe: {reason}")
    raise ValueError(f"recipe: {key} is {first['input']!r}: {reason}")


def _literals(expected: str) -> list[str]:
    return re.findall(r"'([^']+)'", expected)
