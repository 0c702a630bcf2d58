"""The geolocation task: cells, head, loss, data and metrics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobilenets.architecture.detector import Spec
from mobilenets.architecture.network import PAPER_DROPOUT, MobileNet
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.data.doctor import Report
from mobilenets.data.loaders import Batch, Loader, OnBadImage, make_loader
from mobilenets.data.splits import UNKNOWN, FileImages, Split, divide, join
from mobilenets.data.transforms import Distortion
from mobilenets.tasks.geolocation.cells import Cells, Partition, parents_of
from mobilenets.tasks.geolocation.data import Photos, PhotoSource, divide_places, open_photos
from mobilenets.tasks.geolocation.doctor import check
from mobilenets.tasks.geolocation.earth import coarse_place, distance_km, unit_vectors
from mobilenets.tasks.geolocation.loss import cells_loss
from mobilenets.tasks.geolocation.metrics import FIGURES, PlaceMetrics
from mobilenets.tasks.geolocation.prediction import FINEST, CellGuess, Finest, PlacePrediction
from mobilenets.tasks.geolocation.recipes import GEOLOCATION, RECIPES
from mobilenets.training.agreement import Near, differences
from mobilenets.training.imitation import soft, squared
from mobilenets.training.recipe import DistillationChoice, GeolocationChoice, Recipe
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
TEMPERATURE = 4.0
# Published levels hold at most 5,000, 2,000 and 1,000 of 4.7 million photos, and at least 50 (Müller-Budack et al. 2018, section 4.1).
LEVELS = (5, 2, 1)
PHOTOS_OF_FINEST = 4700
LEAST_OF_FINEST, MIN_IMAGES, MIN_SHARE = 50, 50, 5
# Of the probability, what lies within the radius, and the least that a cell is told with.
RADIUS_SHARE, LEAST_TOLD = 0.9, 0.001


class Geolocation(Task):
    """Where on Earth a photo was taken, as a choice between cells of several levels, each of which has a logit.

    Args:
        cells: of the classifier.
        preprocessing: how an image becomes the input.
        source: the data, where the task is made for training.
        parts: photos to learn from, and photos that are held out.
        warnings: what to say of the data.
        temperature: what logits are divided by where probabilities are told.
        finest: how small a cell `decode` tells at most.
    """

    name: ClassVar[str] = "geolocation"
    hub_task: ClassVar[str] = "image-classification"
    mirrors: ClassVar[bool] = True
    default_model: ClassVar[str] = "0.5-160"
    class_layers: ClassVar[tuple[str, ...]] = ("classifier.",)
    monitor: str = "mean_within"
    figure_title: str = "mean share within 1 to 2,500 km"
    answers: ClassVar[str] = "cells"
    output_told: ClassVar[str] = (
        "one value a cell, level after level as in `cells.json`. Divide by its temperature and take a softmax within each level; a finest "
        "cell is as likely as the product of its share with those of the cells it is in, and its place is in `cells.json`"
    )
    figures: tuple[str, ...] = FIGURES

    def __init__(
        self,
        cells: Cells,
        preprocessing: Preprocessing,
        source: PhotoSource | None = None,
        parts: tuple[Photos, Photos] | None = None,
        warnings: Sequence[str] = (),
        temperature: float = 1.0,
        finest: Finest = "country",
    ) -> None:
        self._labels = cells.tokens
        self._preprocessing = preprocessing
        self.cells = cells
        self._source, self._photos, self._warnings = source, parts, tuple(warnings)
        self._temperature, self._finest = temperature, finest
        self._told: Told | None = None
        # The cells' places as the loss needs them, where it is computed.
        self._vectors: tuple[Tensor, ...] = ()

    @classmethod
    def recipes(cls) -> Mapping[str, Recipe]:
        return RECIPES

    @classmethod
    def default_recipe(cls, spec: Spec, where: str, *, pretrained: bool = False) -> Recipe:
        del spec, where, pretrained
        return GEOLOCATION

    @classmethod
    def from_data(
        cls,
        where: str,
        spec: Spec,
        recipe: Recipe | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Self:
        spec = _classifier(spec)
        recipe = recipe or GEOLOCATION
        refuse_choices(recipe, "places", augmentation=OF_BOXES + OF_CLASSES)
        given = preprocessing or plain_preprocessing(spec)
        source = open_photos(where)
        train, val, warnings = _divided(source, _division(source, recipe))
        if recipe.fraction < 1:
            train, _ = divide(train, 1 - recipe.fraction, recipe.seed)
        choice = recipe.geolocation or GeolocationChoice()
        most, least = limits_of(len(train), choice)
        cells = Cells.of_places(train.latitudes, train.longitudes, most, least, choice.max_level)
        return cls(cells, given, source, (train, val), (*source.warnings, *warnings))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], preprocessing: Preprocessing) -> Self:
        return cls(Cells.from_dict(values), preprocessing, temperature=values["temperature"])

    @classmethod
    def of_weights(cls, spec: Spec, labels: Sequence[str], preprocessing: Preprocessing) -> Self:
        del spec, labels, preprocessing
        raise ValueError(
            "a file of weights does not tell where its cells' photos are, which geolocation answers with: a run does"
        )

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
        return {"temperature": self._temperature, **self.cells.to_dict()}

    @property
    def kinds(self) -> str:
        levels = ", ".join(f"{len(level):,}" for level in self.cells.levels)
        return f"{levels} cells"

    def build_model(self, spec: Spec, recipe: Recipe | None = None) -> nn.Module:
        dropout = PAPER_DROPOUT if recipe is None else recipe.dropout
        return MobileNet(_classifier(spec), self.outputs, dropout=dropout)

    def build_data(
        self, recipe: Recipe, *, on_bad_image: OnBadImage, unlabelled: Sequence[Path] = ()
    ) -> TrainingData:
        source, parts = self._source, self._photos
        assert source is not None, "a task read back from a run trains on no data"
        assert parts is not None
        train, val = (self._with_cells(part) for part in parts)
        # As published: a photo that no cell holds would teach that it is nowhere.
        inside = np.flatnonzero((train.targets[:, 2:] != UNKNOWN).any(axis=1))
        dropped = len(train) - len(inside)
        train = train.take(inside.tolist())
        if unlabelled:
            nothing = np.full((len(unlabelled), train.targets.shape[1]), UNKNOWN, np.float32)
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
        division = _division(source, recipe)
        data = told_data(source, loaders, division, on_bad_image=on_bad_image)
        told = list(self._warnings)
        if dropped:
            told.append(
                f"{dropped:,} of {dropped + len(inside):,} photos are not learnt from: too few are in their cells"
            )
        return TrainingData(data.train, data.val, data.record, [*told, *data.warnings])

    def open_for_evaluation(
        self,
        where: str,
        split: str | None,
        record: Mapping[str, Any],
        *,
        on_bad_image: OnBadImage,
        limit: int | None = None,
    ) -> tuple[str, Loader, tuple[str, ...]]:
        source = open_photos(where)
        own = source.fingerprint() == record.get("fingerprint")
        held = None
        if own and "held_out" in record:
            train, val, _ = _divided(source, record)
            held = (train, val)
        name, part, warnings = choose_part(where, source.splits, split, held, own=own, limit=limit)
        loader, skipped = make_loader(
            self._with_cells(part),
            self._preprocessing,
            EVALUATION_BATCH,
            what=f"{name} images",
            on_bad_image=on_bad_image,
        )
        told = (*source.warnings, *warnings, *(f"left out: {problem}" for problem in skipped))
        return name, loader, told

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        km = (recipe.geolocation or GeolocationChoice()).smoothing
        return {"loss": self._loss(model(batch.images_NCHW).float(), batch.targets_N, km)}

    def imitate(self, outputs: Tensor, taught: Tensor, choice: DistillationChoice) -> Tensor:
        if choice.loss == "squared":
            return squared(outputs, taught)
        temperature = choice.temperature or TEMPERATURE
        losses = [soft(outputs[:, part], taught[:, part], temperature) for part in self.cells.parts]
        return torch.stack(losses).mean()

    def metrics(self) -> PlaceMetrics:
        def loss(outputs_NJ: Tensor, targets: Tensor) -> tuple[Tensor, int]:
            known = int((targets[:, 2:] != UNKNOWN).sum())
            return self._loss(outputs_NJ, targets), known

        # A temperature is fitted in training, for what is kept of it.
        return PlaceMetrics(self.locate, loss, None if self._source is None else self.cells)

    def settle(self, details: Mapping[str, Any]) -> None:
        self._temperature = float(details.get("temperature", self._temperature))

    def locate(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """The mean place of the likeliest of the finest cells: latitudes and longitudes (N, 2)."""
        best_N = self.cells.probabilities(outputs).argmax(axis=1)
        return np.asarray(self.cells.finest.places_K2[best_N])

    def compare(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> SameCells:
        best_N, other_N = (
            self.cells.probabilities(outputs).argmax(axis=1) for outputs in (reference, other)
        )
        return SameCells(
            len(reference), *differences(reference, other), float((best_N == other_N).mean())
        )

    def beside(self) -> dict[str, Any]:
        return {"cells.json": self.to_dict()}

    def telling(self, finest: Finest) -> Self:
        """The same task with answers of another size: cells as large as a city, a region or a country."""
        task = copy.copy(self)
        task._finest, task._told = finest, None
        return task

    @property
    def finest(self) -> Finest:
        """How small a cell `decode` tells at most."""
        return self._finest

    def told_cells(self) -> Told:
        """Cells of the size that `decode` tells, found once."""
        if self._told is None:
            self._told = _told_cells(self.cells.finest, self._finest)
        return self._told

    def decode(self, outputs: NDArray[np.float32]) -> list[Prediction]:
        _, least_km = FINEST[self._finest]
        told, told_K, rounded_M2 = self.told_cells()
        tokens = told.tokens
        predictions: list[Prediction] = []
        for scores_K in self.cells.probabilities(outputs, self._temperature):
            scores_M = np.bincount(told_K, scores_K, len(told)).astype(np.float64)
            order_M = np.argsort(-scores_M, kind="stable")
            radius = radius_km(told.places_K2, told.spread_K, scores_M, int(order_M[0]))
            likely = [place for place in order_M.tolist() if scores_M[place] >= LEAST_TOLD]
            guesses = tuple(
                CellGuess(
                    tokens[place],
                    latitude=rounded_M2[place][0],
                    longitude=rounded_M2[place][1],
                    score=float(scores_M[place]),
                )
                for place in likely or order_M[:1].tolist()
            )
            predictions.append(PlacePrediction(guesses, max(radius, least_km), self._finest))
        return predictions

    def _loss(self, outputs_NJ: Tensor, targets: Tensor, km: float = 0.0) -> Tensor:
        if km and (not self._vectors or self._vectors[0].device != outputs_NJ.device):
            self._vectors = tuple(
                torch.from_numpy(unit_vectors(level.places_K2[:, 0], level.places_K2[:, 1]))
                .float()
                .to(outputs_NJ.device)
                for level in self.cells.levels
            )
        cells_NL = targets[:, 2:].long()
        return cells_loss(outputs_NJ, cells_NL, self.cells.parts, self._vectors or None, km)

    def _with_cells(self, photos: Photos) -> Split:
        """Latitude, longitude and the cell of each level as targets, float32 (N, 2 + L): a metre's precision."""
        cells_NL = self.cells.index_of(photos.latitudes, photos.longitudes)
        return Split(photos.images, np.hstack([photos.targets, cells_NL]).astype(np.float32))


# Cells of the size that is told, which of them each finest one is in, and their coarse places.
Told = tuple[Partition, NDArray[np.int64], list[tuple[float, float]]]


def _told_cells(cells: Partition, finest: Finest) -> Told:
    level, least_km = FINEST[finest]
    told, told_K = cells.merged(parents_of(cells.ids_K, level))
    # The mean of photos around one house is that house.
    rounded_M2 = [
        coarse_place(latitude, longitude, least_km)
        for latitude, longitude in told.places_K2.tolist()
    ]
    return told, told_K, rounded_M2


@dataclass(frozen=True)
class SameCells(Near):
    """How far two sets of logits (N, J) are apart, and for how many images the likeliest cell is the same."""

    same_cells: float

    @property
    def share(self) -> float:
        """Of the images, those for which the cells agree."""
        return self.same_cells

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.2g} "
            f"(relative {self.relative_difference:.2g}), the cell agrees on "
            f"{100 * self.same_cells:.2f} % of {self.images} images"
        )


def limits_of(photos: int, choice: GeolocationChoice) -> tuple[tuple[int, ...], int]:
    """Most photos of a cell, by level, and the least: the recipe's, or the published ones scaled to so many photos.

    >>> limits_of(4_700_000, GeolocationChoice()), limits_of(10_000, GeolocationChoice())
    (((5000, 2000, 1000), 50), ((250, 100, 50), 10))
    """
    most = choice.max_images
    if most is None:
        finest = max(LEAST_OF_FINEST, photos // PHOTOS_OF_FINEST)
        most = tuple(share * finest for share in LEVELS)
    least = choice.min_images
    if least is None:
        least = max(1, min(MIN_IMAGES, min(most) // MIN_SHARE))
    return most, least


def radius_km(
    places_K2: NDArray[np.float64],
    spread_K: NDArray[np.float64],
    scores_K: NDArray[np.float64],
    answer: int,
) -> float:
    """How far one must go from a cell's place to have passed 90 % of the probability, each cell with its photos' spread."""
    latitude_K, longitude_K = places_K2.T
    reach_K = (
        distance_km(latitude_K[answer], longitude_K[answer], latitude_K, longitude_K) + spread_K
    )
    order_K = np.argsort(reach_K)
    passed_K = np.cumsum(scores_K[order_K])
    place = int(np.searchsorted(passed_K, RADIUS_SHARE * passed_K[-1]))
    return float(reach_K[order_K[min(place, len(order_K) - 1)]])


def _classifier(spec: Spec) -> MobileNetSpec:
    return classifier_spec(spec, "for geolocation", "0.5-160")


def _division(source: PhotoSource, recipe: Recipe) -> dict[str, Any]:
    """How validation photos are chosen, where the data does not say; what a run keeps of it."""
    if "val" in source.splits:
        return {}
    return {"held_out": recipe.held_out, "seed": recipe.seed}


def _divided(
    source: PhotoSource, division: Mapping[str, Any]
) -> tuple[Photos, Photos, tuple[str, ...]]:
    if "val" in source.splits:
        return source.training_part, source.splits["val"], ()
    return divide_places(source.training_part, division["held_out"], division["seed"])


TASK = Geolocation
