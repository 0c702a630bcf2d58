"""The classification task: labels, head, loss, data and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mobilenets.architecture.detector import Spec
from mobilenets.architecture.network import PAPER_DROPOUT, MobileNet
from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.data.doctor import Report
from mobilenets.data.loaders import SMALL_SIDE, Batch, Loader, OnBadImage, evenly, make_loader
from mobilenets.data.sources import open_source, settled
from mobilenets.data.splits import (
    ALL,
    UNKNOWN,
    FileImages,
    Source,
    Split,
    fold_of,
    hold_out,
    join,
    relabel,
)
from mobilenets.data.transforms import Distortion
from mobilenets.tasks.classification.doctor import check
from mobilenets.tasks.classification.metrics import FIGURES, ClassificationMetrics
from mobilenets.tasks.classification.prediction import ClassPrediction, Guess
from mobilenets.tasks.classification.probe import fit_classifier
from mobilenets.tasks.classification.recipes import CIFAR, DIGITS, FINETUNE, MODERN, RECIPES
from mobilenets.training.agreement import Parity, compare
from mobilenets.training.imitation import soft, squared
from mobilenets.training.recipe import DistillationChoice, Recipe
from mobilenets.training.task import (
    OF_BOXES,
    Prediction,
    Task,
    TrainingData,
    classifier_spec,
    make_loaders,
)

TOP = 5
EVALUATION_BATCH = 64
# Of what a teacher says.
TEMPERATURE = 4.0


class Classification(Task):
    """One label an image, from a linear classifier and cross-entropy.

    Args:
        labels: class names by index.
        preprocessing: how an image becomes the input.
        source: the data, where the task is made for training.
        outputs: logits of the network, where they are more than the labels.
        class_weights_K: what each class counts in the training loss, 1 on average over the images.
    """

    name: ClassVar[str] = "classification"
    hub_task: ClassVar[str] = "image-classification"
    mirrors: ClassVar[bool] = True
    default_model: ClassVar[str] = "0.5-160"
    class_layers: ClassVar[tuple[str, ...]] = ("classifier.",)
    monitor: str = "top1"
    figure_title: str = "top-1"
    answers: ClassVar[str] = "first guesses"
    exclusive: ClassVar[bool] = True
    figures: tuple[str, ...] = FIGURES

    def __init__(
        self,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        source: Source | None = None,
        warnings: Sequence[str] = (),
        outputs: int | None = None,
        class_weights_K: Tensor | None = None,
    ) -> None:
        self._outputs = outputs or len(labels)
        self._class_weights_K = class_weights_K
        self._labels = tuple(labels)
        self._preprocessing = preprocessing
        self._source = source
        self._warnings = tuple(warnings)

    @property
    def outputs(self) -> int:
        return self._outputs

    @classmethod
    def recipes(cls) -> Mapping[str, Recipe]:
        return RECIPES

    @classmethod
    def default_recipe(cls, spec: Spec, where: str, *, pretrained: bool = False) -> Recipe:
        if pretrained:
            return FINETUNE
        if where == "digits":
            return DIGITS
        return CIFAR if max(spec.height, spec.across) <= SMALL_SIDE else MODERN

    @classmethod
    def from_data(
        cls,
        where: str,
        spec: Spec,
        recipe: Recipe | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Self:
        spec = _classifier(spec)
        source = open_source(where)
        outputs = recipe.outputs if recipe is not None else None
        if outputs is not None and outputs < len(source.labels):
            raise ValueError(
                f"recipe: outputs is {outputs}, but {where} has {len(source.labels)} classes"
            )
        channels = channel_order(spec.input_channels)
        warnings = list(source.warnings)
        if spec.final_size == (1, 1):
            warnings.append(
                f"the last feature map of {spec} is 1x1, which starves small images: "
                "a total stride of s16 or s8 keeps more"
            )
        small = max(spec.height, spec.across) <= SMALL_SIDE
        preprocessing = preprocessing or Preprocessing(
            height=spec.height,
            width=spec.across,
            channels=channels,
            # A small picture has no margin to give away.
            crop_fraction=1.0 if small else 0.875,
            mean=(0.5,) * spec.input_channels,
            std=(0.5,) * spec.input_channels,
        )
        weights_K = None
        if recipe is not None and recipe.class_weights:
            weights_K = class_weights(_training_part(source).targets, outputs or len(source.labels))
        return cls(source.labels, preprocessing, source, warnings, outputs, weights_K)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], preprocessing: Preprocessing) -> Self:
        return cls(values["labels"], preprocessing, outputs=values.get("outputs"))

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
        return check(where, network=network, preprocessing=preprocessing, noisy=noisy)

    def to_dict(self) -> dict[str, Any]:
        more = {} if self._outputs == len(self._labels) else {"outputs": self._outputs}
        return {"labels": list(self._labels), **more}

    def build_model(self, spec: Spec, recipe: Recipe | None = None) -> nn.Module:
        dropout = PAPER_DROPOUT if recipe is None else recipe.dropout
        return MobileNet(_classifier(spec), self._outputs, dropout=dropout)

    def fit_head(
        self, model: nn.Module, data: TrainingData, recipe: Recipe, device: torch.device
    ) -> dict[str, float]:
        assert isinstance(model, MobileNet)
        assert self._source is not None
        mirror = recipe.augmentation.mirror and self._source.mirror
        return fit_classifier(model, data.train, device, mirror=mirror)

    def build_data(
        self, recipe: Recipe, *, on_bad_image: OnBadImage, unlabelled: Sequence[Path] = ()
    ) -> TrainingData:
        source = self._source
        assert source is not None, "a task read back from a run trains on no data"
        train = _training_part(source)
        record: dict[str, Any] = {
            "where": settled(source.where),
            "fingerprint": source.fingerprint(),
            "train_fingerprint": train.fingerprint(),
        }
        division = _division(source, recipe)
        train, val = _divided(source, division)
        if division:
            record |= {**division, "held_out_fingerprint": val.fingerprint()}
        if recipe.fraction < 1:
            train, _ = hold_out(train, 1 - recipe.fraction, recipe.seed)
        if unlabelled:
            if recipe.augmentation.mixup or recipe.augmentation.cutmix:
                raise ValueError(
                    "recipe: augmentation.mixup and cutmix mix labels, which --unlabelled has none of"
                )
            files = FileImages(tuple(unlabelled))
            train = join([train, Split(files, np.full(len(files), UNKNOWN))])
        # The recipe's choices and the loader's distortions have the same names.
        choices = recipe.augmentation.model_dump()
        for name in OF_BOXES:
            if choices.pop(name) != getattr(type(recipe.augmentation)(), name):
                raise ValueError(
                    f"recipe: augmentation.{name} is for images with boxes: leave it out"
                )
        choices["mirror"] = recipe.augmentation.mirror and source.mirror
        if self._preprocessing.channel_count == 4 and (
            choices["colour"] or choices["randaugment"] is not None
        ):
            raise ValueError(
                "augmentation.colour and augmentation.randaugment change grey and RGB images, not RGBA"
            )
        distortion = Distortion(**choices, outputs=self._outputs)
        train_loader, val_loader, bad_train, bad_val = make_loaders(
            make_loader,
            (train, val),
            self._preprocessing,
            distortion,
            recipe,
            source.where,
            evaluation_batch=EVALUATION_BATCH,
            on_bad_image=on_bad_image,
            window=recipe.shuffle_shards,
        )
        skipped = [*bad_train, *bad_val]
        record |= {
            "train_images": len(train) - len(bad_train),
            "skipped": skipped,
            "on_bad_image": on_bad_image,
        }
        return TrainingData(
            train=train_loader,
            val=val_loader,
            record=record,
            warnings=(*self._warnings, *(f"left out: {problem}" for problem in skipped)),
        )

    def open_for_evaluation(
        self,
        where: str,
        split: str | None,
        record: Mapping[str, Any],
        *,
        on_bad_image: OnBadImage,
        limit: int | None = None,
    ) -> tuple[str, Loader, tuple[str, ...]]:
        source = open_source(where)
        own = source.fingerprint() == record.get("fingerprint")
        source = relabel(source, self._labels)
        name = split or next(
            name for name in ("test", "val", ALL, "train") if name in source.splits
        )
        part = None
        if own and "held_out_fingerprint" in record and name in ("train", "val", ALL):
            taught, held = _divided(source, record)
            # Another folder may have as many images of each class.
            own = held.fingerprint() == record["held_out_fingerprint"]
            if own:
                name, part = ("train", taught) if name == "train" else ("val", held)
        if part is None:
            part = source.split(name)
        warnings: tuple[str, ...] = ()
        if own and name in ("train", ALL):
            warnings = ("these are images the model was trained on: the figures flatter it",)
        if limit is not None and len(part) > limit:
            part = part.take(evenly(len(part), limit))
        loader, skipped = make_loader(
            part,
            self._preprocessing,
            EVALUATION_BATCH,
            what=f"{name} images",
            on_bad_image=on_bad_image,
        )
        return name, loader, (*warnings, *(f"left out: {problem}" for problem in skipped))

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        logits_NK, targets_N = model(batch.images_NCHW), batch.targets_N
        losses_N = F.cross_entropy(
            logits_NK,
            targets_N,
            ignore_index=UNKNOWN,
            label_smoothing=recipe.label_smoothing,
            reduction="none",
        )
        if self._class_weights_K is not None:
            weights_K = self._class_weights_K.to(losses_N)
            mixed = targets_N.is_floating_point()
            losses_N = losses_N * (targets_N @ weights_K if mixed else weights_K[targets_N])
        classes_N = targets_N.argmax(1) if targets_N.is_floating_point() else targets_N
        right_N = (logits_NK.detach().argmax(1) == classes_N).float()
        count = (classes_N != UNKNOWN).sum().clamp(min=1)
        return {"loss": losses_N.sum() / count, "top1": right_N.sum() / count}

    def imitate(self, outputs: Tensor, taught: Tensor, choice: DistillationChoice) -> Tensor:
        if choice.loss == "squared":
            return squared(outputs, taught)
        return soft(outputs, taught, choice.temperature or TEMPERATURE)

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self._labels, self._outputs)

    def compare(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> Parity:
        return compare(reference, other)

    def decode(self, outputs: NDArray[np.float32]) -> list[Prediction]:
        logits_NK = outputs.astype(np.float64)
        scores_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
        scores_NK /= scores_NK.sum(axis=1, keepdims=True)
        # Outputs beyond the labels take their share of probability, but have no name to give.
        scores_NK = scores_NK[:, : len(self._labels)]
        best_N5 = np.argsort(-scores_NK, axis=1, kind="stable")[:, :TOP]
        return [
            ClassPrediction(
                tuple(Guess(self._labels[i], int(i), float(scores_K[i])) for i in best_5)
            )
            for scores_K, best_5 in zip(scores_NK, best_N5, strict=True)
        ]


def _classifier(spec: Spec) -> MobileNetSpec:
    return classifier_spec(spec, "that classifies", "0.5-160")


def class_weights(targets_N: NDArray[np.int64], outputs: int) -> Tensor:
    """Weights by which every class counts the same in all, 1 on average over the images.

    >>> class_weights(np.array([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    counts_K = np.bincount(targets_N, minlength=outputs)
    present = np.count_nonzero(counts_K)
    return torch.from_numpy(len(targets_N) / (present * counts_K.clip(1))).float()


def _division(source: Source, recipe: Recipe) -> dict[str, Any]:
    """How validation images are chosen, where the data does not say; what a run keeps of it."""
    if recipe.folds is not None:
        return {"folds": recipe.folds, "fold": recipe.fold, "seed": recipe.seed}
    if "val" in source.splits:
        return {}
    return {"held_out": recipe.held_out, "seed": recipe.seed}


def _divided(source: Source, division: Mapping[str, Any]) -> tuple[Split, Split]:
    """Training and validation images."""
    train, val = _training_part(source), source.splits.get("val")
    if "folds" in division:
        whole = train if val is None else join([train, val])
        return fold_of(whole, division["folds"], division["fold"], division["seed"])
    if val is not None:
        return train, val
    return hold_out(train, division["held_out"], division["seed"])


def _training_part(source: Source) -> Split:
    return source.splits["train"] if "train" in source.splits else source.split(ALL)


TASK = Classification
