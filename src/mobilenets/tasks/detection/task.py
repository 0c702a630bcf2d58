"""The detection task: labels, network, loss, data and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobilenets.architecture.detector import DetectorSpec, Selection, Spec, spec_from_dict
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.box_loader import BoxDistortion, make_box_loader
from mobilenets.data.boxes import BoxSource, BoxSplit, open_boxes, usable, with_unknown
from mobilenets.data.doctor import Report
from mobilenets.data.loaders import Batch, Loader, OnBadImage
from mobilenets.data.parts import Part
from mobilenets.data.splits import divide
from mobilenets.tasks.detection.boxes import (
    EVERYTHING,
    Objects,
    Scores,
    boxes_of,
    objects_in,
    objects_of,
    select,
)
from mobilenets.tasks.detection.doctor import check
from mobilenets.tasks.detection.faster_rcnn import FasterRcnn
from mobilenets.tasks.detection.file import (
    BoxAgreement,
    FoundBoxes,
    PlacedBoxes,
    compare_objects,
)
from mobilenets.tasks.detection.loss import detection_loss, imitation_loss
from mobilenets.tasks.detection.metrics import FIGURES, DetectionMetrics
from mobilenets.tasks.detection.prediction import BoxPrediction, Found, join_parts
from mobilenets.tasks.detection.recipes import FRCNN_FINETUNE, RECIPES, SSD_FINETUNE
from mobilenets.tasks.detection.ssd import PyramidSsd, Ssd
from mobilenets.training.recipe import DistillationChoice, Recipe
from mobilenets.training.task import (
    Form,
    Prediction,
    Task,
    TrainingData,
    choose_part,
    make_loaders,
    plain_preprocessing,
    told_data,
)

_NETWORKS: dict[str, Callable[[DetectorSpec, int], nn.Module]] = {
    "ssd": Ssd,
    "ssdfpn": PyramidSsd,
    "frcnn": FasterRcnn,
}
EVALUATION_BATCH = 16
# What is told to people: fewer than what is measured.
TOLD = 0.5
# What images with boxes can be changed by.
_CHANGES = ("mirror", "colour", "expand", "crop", "mosaic")


class Detection(Task):
    """Boxes and what is in them, from SSD or Faster R-CNN on any MobileNet.

    Args:
        spec: the detector.
        labels: class names by index, without the background.
        preprocessing: how an image becomes the input.
        source: the data, where the task is made for training.
        scores: what becomes of the network's scores.
        form: of the outputs that it reads.
        score: the least that a box is told with.
    """

    name: ClassVar[str] = "detection"
    hub_task: ClassVar[str] = "object-detection"
    mirrors: ClassVar[bool] = False
    default_model: ClassVar[str] = "ssd300/0.5"
    class_layers: ClassVar[tuple[str, ...]] = (
        "score_heads.",
        "score_tower.",
        "second.box_predictor.",
    )
    monitor: str = "map"
    figure_title: str = "mAP"
    answers: ClassVar[str] = "boxes"
    figures: tuple[str, ...] = FIGURES

    def __init__(
        self,
        spec: DetectorSpec,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        source: BoxSource | None = None,
        scores: Scores = "sigmoid",
        form: Form = "network",
        score: float = TOLD,
    ) -> None:
        self._spec = spec
        self._labels = tuple(labels)
        self._preprocessing = preprocessing
        self._source = source
        self._scores = scores
        # Each image of the second stage is 300.
        self._evaluation_batch = 2 if spec.framework == "frcnn" else EVALUATION_BATCH
        self._form: Form = "found" if spec.framework == "frcnn" else form
        self._told_from = replace(EVERYTHING, score=score)
        self._boxes_A4 = boxes_of(spec)

    @classmethod
    def recipes(cls) -> Mapping[str, Recipe]:
        return RECIPES

    @classmethod
    def default_recipe(cls, spec: Spec, where: str, *, pretrained: bool = False) -> Recipe:
        del where, pretrained
        return FRCNN_FINETUNE if _detector(spec).framework == "frcnn" else SSD_FINETUNE

    @classmethod
    def from_data(
        cls,
        where: str,
        spec: Spec,
        recipe: Recipe | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Self:
        spec = _detector(spec)
        if recipe is not None:
            _check_recipe(recipe, spec)
        given = preprocessing or plain_preprocessing(spec)
        # Nothing is cut off: what is at the edge is searched for too.
        whole = replace(given, resize="squash", crop_fraction=1.0)
        source = open_boxes(where)
        scores = "sigmoid" if recipe is None else recipe.scores
        return cls(spec, source.labels, whole, source, scores)

    @classmethod
    def of_weights(cls, spec: Spec, labels: Sequence[str], preprocessing: Preprocessing) -> Self:
        return cls(_detector(spec), labels, preprocessing)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], preprocessing: Preprocessing) -> Self:
        spec = _detector(spec_from_dict(values["detector"]))
        return cls(spec, values["labels"], preprocessing, scores=values["scores"])

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
        return {
            "labels": list(self._labels),
            "scores": self._scores,
            "detector": self._spec.to_dict(),
        }

    def build_model(self, spec: Spec, recipe: Recipe | None = None) -> nn.Module:
        del recipe
        spec = _detector(spec)
        return _NETWORKS[spec.framework](spec, len(self._labels))

    def build_data(
        self, recipe: Recipe, *, on_bad_image: OnBadImage, unlabelled: Sequence[Path] = ()
    ) -> TrainingData:
        source = self._source
        assert source is not None, "a task read back from a run trains on no data"
        taught = _training_part(source)
        division: dict[str, Any] = {}
        if "val" in source.splits:
            train, val = taught, source.splits["val"]
        else:
            division = {"held_out": recipe.held_out, "seed": recipe.seed}
            train, val = divide(taught, recipe.held_out, recipe.seed)
        if recipe.fraction < 1:
            train, _ = divide(train, 1 - recipe.fraction, recipe.seed)
        train, wrong = usable(train)
        if unlabelled:
            train = with_unknown(train, unlabelled)
        val, wrong_val = usable(val)
        flaws = [*wrong, *wrong_val]
        loaders = make_loaders(
            make_box_loader,
            (train, val),
            self._preprocessing,
            distortion_of(recipe),
            recipe,
            source.where,
            evaluation_batch=self._evaluation_batch,
            on_bad_image=on_bad_image,
        )
        data = told_data(source, loaders, division, on_bad_image=on_bad_image)
        if not flaws:
            return data
        wrong_boxes = (
            f"{len(flaws)} boxes are wrong, and cut off or left out, such as {flaws[0]}: "
            f"mobilenets doctor {source.where} --task detection tells of all"
        )
        return replace(data, warnings=[*data.warnings, wrong_boxes])

    def open_for_evaluation(
        self,
        where: str,
        split: str | None,
        record: Mapping[str, Any],
        *,
        on_bad_image: OnBadImage,
        limit: int | None = None,
    ) -> tuple[str, Loader, tuple[str, ...]]:
        source = open_boxes(where)
        own = source.fingerprint() == record.get("fingerprint")
        warnings: list[str] = []
        dropped = [label for label in source.labels if label not in self._labels]
        if dropped:
            warnings.append(
                f"{where} has {len(dropped)} classes that the model does not know, such as {dropped[0]}: "
                "their objects are left out"
            )
        if source.labels != self._labels:
            source = source.only(self._labels)
        held = None
        if own and "held_out" in record:
            held = divide(_training_part(source), record["held_out"], record["seed"])
        name, part, said = choose_part(where, source.splits, split, held, own=own, limit=limit)
        part, _ = usable(part)
        loader, skipped = make_box_loader(
            part,
            self._preprocessing,
            self._evaluation_batch,
            what=f"{name} images",
            on_bad_image=on_bad_image,
        )
        return name, loader, (*warnings, *said, *(f"left out: {problem}" for problem in skipped))

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        del recipe
        if self._spec.framework == "frcnn":
            # It looks at what is told while it proposes.
            losses: dict[str, Tensor] = model(batch.images_NCHW, batch.targets_N)
            return {"loss": torch.stack(list(losses.values())).sum(), **losses}
        return self._losses(model(batch.images_NCHW), batch.targets_N)

    def imitate(self, outputs: Tensor, taught: Tensor, choice: DistillationChoice) -> Tensor:
        if self._spec.framework == "frcnn":
            raise ValueError(f"{self._spec} learns from no teacher: an SSD does")
        if choice.loss == "squared":
            raise ValueError("recipe: distillation.loss of a detector is soft")
        return imitation_loss(outputs, taught, self._scores, choice.temperature or 1.0)

    def metrics(self) -> DetectionMetrics:
        return DetectionMetrics(self._labels, self._find, self._lose)

    @property
    def steady(self) -> bool:
        # As many objects as there are, a heap of their sizes would only grow.
        return self._spec.framework != "frcnn"

    @property
    def selection(self) -> Selection:
        return EVERYTHING

    def in_file(self, model: nn.Module, form: Form) -> nn.Module:
        if not isinstance(model, Ssd | PyramidSsd):
            raise ValueError(
                f"{self._spec} can't be exported: its second stage looks at as many boxes as the first proposes, and "
                "the runtimes of phones take no such graph; train ssd300 for them"
            )
        placed = PlacedBoxes(model, self._boxes_A4, self._scores)
        return FoundBoxes(placed, self.selection) if form == "found" else placed

    def reading(self, form: Form, score: float | None = None) -> Detection:
        return type(self)(
            self._spec,
            self._labels,
            self._preprocessing,
            scores=self._scores,
            form=form,
            score=TOLD if score is None else score,
        )

    def join(self, predictions: Sequence[Prediction], parts: Sequence[Part]) -> BoxPrediction:
        return join_parts(predictions, parts)

    def compare(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> BoxAgreement:
        return compare_objects(*(self._find(torch.from_numpy(one)) for one in (reference, other)))

    def decode(self, outputs: NDArray[np.float32]) -> list[Prediction]:
        return [
            self._told(objects)
            for objects in self._find(torch.from_numpy(outputs), self._told_from)
        ]

    def _find(self, outputs_N: Tensor, selection: Selection = EVERYTHING) -> list[Objects]:
        if self._form == "found":
            return objects_of(outputs_N, selection.score)
        if self._form == "boxes":
            return select(outputs_N, selection)
        return objects_in(outputs_N, self._boxes_A4, self._scores, selection)

    def _losses(self, outputs_NAD: Tensor, told_NMD: Tensor) -> dict[str, Tensor]:
        boxes_A4, focal = self._boxes_A4.to(outputs_NAD.device), self._spec.framework == "ssdfpn"
        return detection_loss(outputs_NAD, told_NMD, boxes_A4, self._scores, focal=focal)

    def _lose(self, outputs_N: Tensor, told_NMD: Tensor) -> Tensor:
        if self._form != "network":
            # Faster R-CNN's two stages give a loss only while they are taught, and files give none.
            return outputs_N.new_zeros(())
        return self._losses(outputs_N, told_NMD)["loss"]

    def _told(self, objects: Objects) -> BoxPrediction:
        rows = zip(
            objects.boxes_M4.tolist(),
            objects.scores_M.tolist(),
            objects.labels_M.tolist(),
            strict=True,
        )
        return BoxPrediction(
            tuple(
                Found(self._labels[label], label, score, (box[0], box[1], box[2], box[3]))
                for box, score, label in rows
            )
        )


def distortion_of(recipe: Recipe) -> BoxDistortion:
    """What a recipe does to training images."""
    changes = recipe.augmentation.model_dump(include=set(_CHANGES))
    return BoxDistortion(**{**changes, "colour": bool(changes["colour"])})


def _detector(spec: Spec) -> DetectorSpec:
    if not isinstance(spec, DetectorSpec):
        raise ValueError(f"{spec} classifies: a detector is named as ssd300/0.5 is")
    return spec


def _check_recipe(recipe: Recipe, spec: DetectorSpec) -> None:
    usual = type(recipe.augmentation)()
    for name, value in recipe.augmentation:
        if name not in _CHANGES and value != getattr(usual, name):
            raise ValueError(f"recipe: augmentation.{name} does not move boxes along: leave it out")
    for name in ("label_smoothing", "class_weights", "outputs", "dropout", "dirac", "whiten"):
        if getattr(recipe, name):
            raise ValueError(f"recipe: {name} is for classifiers: leave it out")
    stopping = recipe.early_stopping
    if spec.framework == "frcnn" and stopping is not None and stopping.metric == "loss":
        raise ValueError("recipe: Faster R-CNN has no loss outside training: stop early by map")
    if recipe.fine_tuning is not None and recipe.fine_tuning.probe:
        raise ValueError("recipe: fine_tuning.probe fits a classifier, and a detector has none")
    if recipe.growth is not None:
        raise ValueError(
            "recipe: a detector's boxes are of one size of image: growth is not for it"
        )
    if recipe.folds is not None:
        raise ValueError("detection trains on train and val: folds are not for it")


def _training_part(source: BoxSource) -> BoxSplit:
    if "train" in source.splits:
        return source.splits["train"]
    if set(source.splits) != {"all"}:
        raise ValueError(f"{source.where} has {', '.join(source.splits)} but no train images")
    return source.splits["all"]


TASK = Detection
