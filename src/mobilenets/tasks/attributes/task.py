"""The attributes task: questions, head, loss, data and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mobilenets.architecture.detector import Spec
from mobilenets.architecture.network import PAPER_DROPOUT, MobileNet
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.data.doctor import Report
from mobilenets.data.loaders import Batch, Loader, OnBadImage, make_loader
from mobilenets.data.splits import ALL, FileImages, Split, divide, join
from mobilenets.data.transforms import Distortion
from mobilenets.tasks.attributes.data import AttributeSource, open_attributes
from mobilenets.tasks.attributes.doctor import check
from mobilenets.tasks.attributes.loss import attribute_divergence, attribute_loss
from mobilenets.tasks.attributes.metrics import FIGURES, HALF, AttributeMetrics
from mobilenets.tasks.attributes.prediction import Answer, AttributePrediction
from mobilenets.tasks.attributes.recipes import ATTRIBUTES, RECIPES
from mobilenets.training.agreement import Near, differences
from mobilenets.training.imitation import squared
from mobilenets.training.recipe import DistillationChoice, Recipe
from mobilenets.training.task import (
    OF_BOXES,
    OF_CLASSES,
    Prediction,
    Task,
    TrainingData,
    choose_part,
    classifier_spec,
    make_loaders,
    plain_preprocessing,
    refuse_choices,
    told_data,
)

EVALUATION_BATCH = 64


class Attributes(Task):
    """Yes or no to several questions about an image, each by a logit of its own.

    Args:
        labels: the attributes.
        preprocessing: how an image becomes the input.
        source: the data, where the task is made for training.
        thresholds: from which probability on the answer is yes, by attribute; a half, where nothing is known.
    """

    name: ClassVar[str] = "attributes"
    hub_task: ClassVar[str] = "image-classification"
    mirrors: ClassVar[bool] = True
    default_model: ClassVar[str] = "0.5-128"
    class_layers: ClassVar[tuple[str, ...]] = ("classifier.",)
    monitor: str = "map"
    figure_title: str = "mean AP"
    answers: ClassVar[str] = "answers"
    output_told: ClassVar[str] = (
        "one value an attribute before a sigmoid, each a yes or no of its own"
    )
    figures: tuple[str, ...] = FIGURES

    def __init__(
        self,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        source: AttributeSource | None = None,
        thresholds: Sequence[float] = (),
    ) -> None:
        self._labels = tuple(labels)
        self._preprocessing = preprocessing
        self._source = source
        self._thresholds = tuple(thresholds) or (HALF,) * len(self._labels)

    @classmethod
    def recipes(cls) -> Mapping[str, Recipe]:
        return RECIPES

    @classmethod
    def default_recipe(cls, spec: Spec, where: str, *, pretrained: bool = False) -> Recipe:
        del spec, where, pretrained
        return ATTRIBUTES

    @classmethod
    def from_data(
        cls,
        where: str,
        spec: Spec,
        recipe: Recipe | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Self:
        spec = _classifier(spec)
        if recipe is not None:
            refuse_choices(recipe, "attributes", augmentation=OF_BOXES + OF_CLASSES)
        given = preprocessing or replace(plain_preprocessing(spec), crop_fraction=1.0)
        source = open_attributes(where)
        return cls(source.labels, given, source)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], preprocessing: Preprocessing) -> Self:
        return cls(values["labels"], preprocessing, thresholds=values["thresholds"])

    @classmethod
    def of_weights(cls, spec: Spec, labels: Sequence[str], preprocessing: Preprocessing) -> Self:
        _classifier(spec)
        return cls(labels, preprocessing)

    @classmethod
    def check_data(
        cls,
        where: str,
        *,
        network: nn.Module | None = None,
        preprocessing: Preprocessing | None = None,
        noisy: bool = False,
    ) -> Report:
        del network, preprocessing, noisy
        return check(where)

    def to_dict(self) -> dict[str, Any]:
        return {"labels": list(self._labels), "thresholds": list(self._thresholds)}

    def build_model(self, spec: Spec, recipe: Recipe | None = None) -> nn.Module:
        dropout = PAPER_DROPOUT if recipe is None else recipe.dropout
        return MobileNet(_classifier(spec), len(self._labels), dropout=dropout)

    def build_data(
        self, recipe: Recipe, *, on_bad_image: OnBadImage, unlabelled: Sequence[Path] = ()
    ) -> TrainingData:
        source = self._source
        assert source is not None, "a task read back from a run trains on no data"
        division: dict[str, Any] = {}
        if "val" not in source.splits:
            division = {"held_out": recipe.held_out, "seed": recipe.seed}
        train, val = _divided(source, division)
        if recipe.fraction < 1:
            train, _ = divide(train, 1 - recipe.fraction, recipe.seed)
        if unlabelled:
            nothing = np.full((len(unlabelled), len(self._labels)), np.nan, dtype=np.float32)
            train = join([train, Split(FileImages(tuple(unlabelled)), nothing)])
        choices = recipe.augmentation.model_dump(exclude=set(OF_BOXES + OF_CLASSES))
        loaders = make_loaders(
            make_loader,
            (train, val),
            self._preprocessing,
            Distortion(**choices),
            recipe,
            source.where,
            evaluation_batch=EVALUATION_BATCH,
            on_bad_image=on_bad_image,
        )
        return told_data(source, loaders, division, on_bad_image=on_bad_image)

    def open_for_evaluation(
        self,
        where: str,
        split: str | None,
        record: Mapping[str, Any],
        *,
        on_bad_image: OnBadImage,
        limit: int | None = None,
    ) -> tuple[str, Loader, tuple[str, ...]]:
        source = open_attributes(where)
        own = source.fingerprint() == record.get("fingerprint")
        parts = _only(source, self._labels).splits
        held = _divided(source, record) if own and "held_out" in record else None
        name, part, warnings = choose_part(where, parts, split, held, own=own, limit=limit)
        loader, skipped = make_loader(
            part,
            self._preprocessing,
            EVALUATION_BATCH,
            what=f"{name} images",
            on_bad_image=on_bad_image,
        )
        return name, loader, (*warnings, *(f"left out: {problem}" for problem in skipped))

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        del recipe
        return {"loss": attribute_loss(model(batch.images_NCHW).float(), batch.targets_N)}

    def imitate(self, outputs: Tensor, taught: Tensor, choice: DistillationChoice) -> Tensor:
        if choice.loss == "squared":
            return squared(outputs, taught)
        return attribute_divergence(outputs, taught, choice.temperature or 1.0)

    def metrics(self) -> AttributeMetrics:
        # Training fits thresholds to its validation images; a run that is evaluated has them.
        return AttributeMetrics(self._labels, None if self._source else self._thresholds)

    def settle(self, details: Mapping[str, Any]) -> None:
        self._thresholds = tuple(details["thresholds"])

    def compare(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> SameAnswers:
        logits = np.log(self._thresholds) - np.log1p(-np.array(self._thresholds))
        same = float(((reference >= logits) == (other >= logits)).mean())
        return SameAnswers(len(reference), *differences(reference, other), same)

    def decode(self, outputs: NDArray[np.float32]) -> list[Prediction]:
        scores_NL = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        return [
            AttributePrediction(
                tuple(
                    Answer(label, float(score), threshold)
                    for label, score, threshold in zip(
                        self._labels, scores_L, self._thresholds, strict=True
                    )
                )
            )
            for scores_L in scores_NL
        ]


@dataclass(frozen=True)
class SameAnswers(Near):
    """How far two sets of logits (N, L) are apart, and how many answers are the same at the thresholds."""

    same_answers: float

    @property
    def share(self) -> float:
        """Of the answers, those that agree."""
        return self.same_answers

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.2g} "
            f"(relative {self.relative_difference:.2g}), {100 * self.same_answers:.2f} % of the answers "
            f"on {self.images} images agree"
        )


def _classifier(spec: Spec) -> MobileNetSpec:
    return classifier_spec(spec, "for attributes", "0.5-128")


def _divided(source: AttributeSource, division: Mapping[str, Any]) -> tuple[Split, Split]:
    train = source.splits["train"] if "train" in source.splits else source.splits[ALL]
    if "val" in source.splits:
        return train, source.splits["val"]
    return divide(train, division["held_out"], division["seed"])


def _only(source: AttributeSource, labels: Sequence[str]) -> AttributeSource:
    """The same data with these attributes alone, in this order; those that are not told stay unknown.

    Raises:
        ValueError: it tells none of them.
    """
    if source.labels == tuple(labels):
        return source
    known = [label for label in labels if label in source.labels]
    if not known:
        raise ValueError(
            f"{source.where} tells {', '.join(source.labels[:5])}, and the model {', '.join(labels[:5])}: "
            "they share no attribute"
        )
    splits = {}
    for name, split in source.splits.items():
        targets_NL = np.full((len(split), len(labels)), np.nan, dtype=np.float32)
        for label in known:
            targets_NL[:, labels.index(label)] = split.targets[:, source.labels.index(label)]
        splits[name] = Split(split.images, targets_NL)
    return AttributeSource(where=source.where, labels=tuple(labels), splits=splits)


TASK = Attributes
